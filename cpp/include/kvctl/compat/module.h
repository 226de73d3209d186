/*!
 * \file kvctl/compat/module.h
 * \brief Module and ModuleNode as they were in 2024, and the macros that make their functions.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_MODULE_H_
#define KVCTL_COMPAT_MODULE_H_

#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvctl/packed_func_compat.h"

namespace kvctl {
namespace compat {

class Module;

/*! \brief What a module can do, for ModuleNode::GetPropertyMask. */
enum ModulePropertyMask : int {
  kBinarySerializable = ffi::Module::kBinarySerializable,
  kRunnable = ffi::Module::kRunnable,
  kDSOExportable = ffi::Module::kCompilationExportable,
};

/*!
 * \brief Base of a module whose functions are made on request, as llm_chat.cc's was.
 *
 * A subclass defines type_key and GetFunction with their signatures of 2024, or writes
 * TVM_MODULE_VTABLE_BEGIN(type_key), its entries and TVM_MODULE_VTABLE_END().
 */
class ModuleNode : public ffi::ModuleObj {
 public:
  virtual const char* type_key() const = 0;
  virtual PackedFunc GetFunction(const ffi::String& name,
                                 const ffi::ObjectPtr<ffi::Object>& sptr_to_self) = 0;

  const char* kind() const final { return type_key(); }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    PackedFunc function = GetFunction(name, ffi::GetObjectPtr<ffi::Object>(this));
    if (function == nullptr) return std::nullopt;
    return static_cast<const ffi::Function&>(function);
  }
  /*! \brief The function, looked for in the imported modules too where query_imports. */
  PackedFunc GetFunction(const ffi::String& name, bool query_imports) {
    return ffi::ModuleObj::GetFunction(name, query_imports);
  }
  void Import(const Module& other);
};

/*! \brief What a Module's arrow leads to: any module's methods under their names of 2024. */
class ModuleMethods {
 public:
  explicit ModuleMethods(ffi::ModuleObj* module) : module_(module) {}
  const ModuleMethods* operator->() const { return this; }
  /*! \brief For static_cast<MyModuleNode*>(module.operator->()). */
  template <typename T, typename = std::enable_if_t<std::is_base_of_v<ffi::ModuleObj, T>>>
  explicit operator T*() const {
    return static_cast<T*>(module_);
  }

  const char* type_key() const { return module_->kind(); }
  PackedFunc GetFunction(const ffi::String& name, bool query_imports = false) const {
    return module_->GetFunction(name, query_imports);
  }
  bool ImplementsFunction(const ffi::String& name, bool query_imports = false) const {
    return module_->ImplementsFunction(name, query_imports);
  }
  int GetPropertyMask() const { return module_->GetPropertyMask(); }
  ffi::String GetSource(const ffi::String& format = "") const {
    return module_->InspectSource(format);
  }
  void SaveToFile(const ffi::String& file_name, const ffi::String& format) const {
    module_->WriteToFile(file_name, format);
  }
  void Import(const Module& other) const;
  std::vector<Module> imports() const;
  template <typename T>
  bool IsInstance() const {
    return module_->IsInstance<T>();
  }

 private:
  ffi::ModuleObj* module_;
};

/*! \brief A module; null where there is none. */
class Module : public ffi::Module {
 public:
  Module() : ffi::Module(ffi::UnsafeInit{}) {}
  Module(std::nullptr_t) : Module() {}                            // NOLINT(*)
  Module(ffi::Module module) : ffi::Module(std::move(module)) {}  // NOLINT(*)
  explicit Module(ffi::UnsafeInit tag) : ffi::Module(tag) {}
  template <typename T, typename = std::enable_if_t<std::is_base_of_v<ffi::ModuleObj, T>>>
  explicit Module(const ffi::ObjectPtr<T>& module)
      : ffi::Module(ffi::ObjectPtr<ffi::ModuleObj>(module)) {}
  [[maybe_unused]] static constexpr bool _type_is_nullable = true;

  static Module LoadFromFile(const ffi::String& file_name, const ffi::String& /*format*/ = "") {
    return ffi::Module::LoadFromFile(file_name);
  }
  PackedFunc GetFunction(const ffi::String& name, bool query_imports = false) const {
    return operator->().GetFunction(name, query_imports);
  }
  void Import(const Module& other) const { operator->().Import(other); }
  /*! \throws tvm::ffi::Error InternalError where there is no module. */
  ModuleMethods operator->() const {
    TVM_FFI_ICHECK(defined()) << "the Module is null";
    return ModuleMethods(ffi::Module::operator->());
  }
};

inline void ModuleNode::Import(const Module& other) { ImportModule(other); }
inline void ModuleMethods::Import(const Module& other) const { module_->ImportModule(other); }
inline std::vector<Module> ModuleMethods::imports() const {
  std::vector<Module> imports;
  for (const ffi::Any& one : module_->imports()) imports.push_back(one.cast<ffi::Module>());
  return imports;
}

/*! \brief The packed form of a method of the module that self points to. */
template <typename Self, typename R, typename C, typename... Args, bool kNoexcept>
PackedFunc PackMethod(ffi::ObjectPtr<ffi::Object> self,
                      R (C::*method)(Args...) noexcept(kNoexcept)) {
  return PackTyped<R, Args...>(
      [self = std::move(self), method](auto&&... args) -> R {
        return (static_cast<Self*>(self.get())->*method)(std::forward<decltype(args)>(args)...);
      },
      std::index_sequence_for<Args...>{});
}
template <typename Self, typename R, typename C, typename... Args, bool kNoexcept>
PackedFunc PackMethod(ffi::ObjectPtr<ffi::Object> self,
                      R (C::*method)(Args...) const noexcept(kNoexcept)) {
  return PackTyped<R, Args...>(
      [self = std::move(self), method](auto&&... args) -> R {
        return (static_cast<Self*>(self.get())->*method)(std::forward<decltype(args)>(args)...);
      },
      std::index_sequence_for<Args...>{});
}

}  // namespace compat
}  // namespace kvctl

/*! \brief In a ModuleNode's class: the table of its functions begins. */
#define TVM_MODULE_VTABLE_BEGIN(TypeKey)                                      \
  const char* type_key() const final { return TypeKey; }                      \
  ::kvctl::compat::PackedFunc GetFunction(                                    \
      const ::tvm::ffi::String& kvctl_name,                                   \
      const ::tvm::ffi::ObjectPtr<::tvm::ffi::Object>& kvctl_self) override { \
    using KvctlSelf = std::remove_cv_t<std::remove_pointer_t<decltype(this)>>;
/*! \brief A method by name; arguments and result are converted. */
#define TVM_MODULE_VTABLE_ENTRY(Name, Method) \
  if (kvctl_name == Name) return ::kvctl::compat::PackMethod<KvctlSelf>(kvctl_self, Method);
/*! \brief A method that takes (TVMArgs, TVMRetValue*). */
#define TVM_MODULE_VTABLE_ENTRY_PACKED(Name, Method)                                    \
  if (kvctl_name == Name) {                                                             \
    return ::kvctl::compat::PackedFunc(                                                 \
        [kvctl_self](::kvctl::compat::TVMArgs args, ::kvctl::compat::TVMRetValue* rv) { \
          (static_cast<KvctlSelf*>(kvctl_self.get())->*(Method))(args, rv);             \
        });                                                                             \
  }
/*! \brief The table ends; other names have no function. */
#define TVM_MODULE_VTABLE_END()                \
  return ::kvctl::compat::PackedFunc(nullptr); \
  }
/*! \brief The table ends; Method(name) gives the functions of other names. */
#define TVM_MODULE_VTABLE_END_WITH_DEFAULT(Method) \
  return (this->*(Method))(kvctl_name);            \
  }

#define KVCTL_COMPAT_EXPORT(ExportName, ...)                                                  \
  extern "C" TVM_FFI_DLL_EXPORT int __tvm_ffi_##ExportName(void*, const TVMFFIAny* args,      \
                                                           int32_t num_args, TVMFFIAny* rv) { \
    TVM_FFI_SAFE_CALL_BEGIN();                                                                \
    static const ::kvctl::compat::PackedFunc function = __VA_ARGS__;                          \
    static_cast<const ::tvm::ffi::Function&>(function).CallPacked(                            \
        reinterpret_cast<const ::tvm::ffi::AnyView*>(args), num_args,                         \
        reinterpret_cast<::tvm::ffi::Any*>(rv));                                              \
    TVM_FFI_SAFE_CALL_END();                                                                  \
  }
/*!
 * \brief Exports a function, or a lambda, from a library that Module::LoadFromFile opens.
 *
 * The symbol is today's, __tvm_ffi_<ExportName>: such a library is for today's TVM alone.
 */
#define TVM_DLL_EXPORT_TYPED_FUNC(ExportName, ...) \
  KVCTL_COMPAT_EXPORT(ExportName, ::kvctl::compat::Pack(__VA_ARGS__))
/*! \brief As above, for a body that takes (TVMArgs, TVMRetValue*). */
#define TVM_DLL_EXPORT_PACKED_FUNC(ExportName, ...) \
  KVCTL_COMPAT_EXPORT(ExportName, ::kvctl::compat::PackedFunc(__VA_ARGS__))

#endif  // KVCTL_COMPAT_MODULE_H_
