/*!
 * \file kvctl/registry_compat.h
 * \brief TVM's registration API of 2024 over today's registry.
 *
 * TVM no longer has TVM_REGISTER_GLOBAL, PackedFunc, TVMArgs and TVMRetValue. An extension from the
 * time of llm_chat.cc ports by including this header instead of
 *
 *     #include <tvm/runtime/module.h>
 *     #include <tvm/runtime/packed_func.h>
 *     #include <tvm/runtime/registry.h>
 *
 * What differs: integers that do not fit the parameter they are passed to are an error instead of
 * being cut, and a name that is already registered keeps its first function, with a line on stderr
 * (an exception would end the process while it loads the library).
 */
#ifndef KVCTL_REGISTRY_COMPAT_H_
#define KVCTL_REGISTRY_COMPAT_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/device.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/runtime/device_api.h>
#include <tvm/runtime/logging.h>
#include <tvm/runtime/tensor.h>

#include <iostream>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "kvctl/packed_func_compat.h"

namespace kvctl {
namespace compat {

/*! \brief The packed form of an ordinary function or lambda, its arguments converted as above. */
template <typename R, typename... Args, typename F, size_t... I>
PackedFunc PackTyped(F body, std::index_sequence<I...>) {
  return PackedFunc([body](TVMArgs args, TVMRetValue* result) mutable {
    if (args.size() != static_cast<int>(sizeof...(Args))) {
      TVM_FFI_THROW(TypeError) << "expected " << sizeof...(Args) << " arguments, got "
                               << args.size();
    }
    if constexpr (std::is_void_v<R>) {
      body(args[I].operator std::decay_t<Args>()...);
      (void)result;
    } else {
      *result = body(args[I].operator std::decay_t<Args>()...);
    }
  });
}

template <typename F, typename Signature = decltype(&F::operator())>
struct TypedSignature;
template <typename F, typename C, typename R, typename... Args>
struct TypedSignature<F, R (C::*)(Args...) const> {
  static PackedFunc Pack(F body) {
    return PackTyped<R, Args...>(std::move(body), std::index_sequence_for<Args...>{});
  }
};
template <typename F, typename C, typename R, typename... Args>
struct TypedSignature<F, R (C::*)(Args...)> : TypedSignature<F, R (C::*)(Args...) const> {};

/*! \brief A name in TVM's registry. */
class Registry {
 public:
  static Registry Register(const std::string& name) { return Registry(name); }

  /*! \brief The function registered under name; nullptr if there is none. Lives for ever. */
  static const PackedFunc* Get(const std::string& name) {
    // The pointer of 2024 stayed valid, so what it leads to is kept: one entry per name asked for.
    static std::mutex mutex;
    static auto* found = new std::map<std::string, PackedFunc>();
    std::lock_guard<std::mutex> lock(mutex);
    auto function = ffi::Function::GetGlobal(name);
    if (!function.has_value()) return nullptr;
    PackedFunc& slot = (*found)[name];
    slot = PackedFunc(*std::move(function));
    return &slot;
  }

  /*! \param body void(TVMArgs args, TVMRetValue* rv). */
  template <typename Body>
  Registry& set_body(Body body) {
    if constexpr (std::is_constructible_v<PackedFunc, Body>) {
      return Set(PackedFunc(std::move(body)));
    } else {
      static_assert(std::is_invocable_v<Body&, TVMArgs, TVMRetValue*>,
                    "set_body takes void(TVMArgs, TVMRetValue*)");
    }
  }

  /*! \param body an ordinary function or a lambda. */
  template <typename F>
  Registry& set_body_typed(F body) {
    return Set(TypedSignature<F>::Pack(std::move(body)));
  }
  template <typename R, typename... Args>
  Registry& set_body_typed(R (*body)(Args...)) {
    return Set(PackTyped<R, Args...>(body, std::index_sequence_for<Args...>{}));
  }

  /*! \brief Accepted, as it was; today's registry keeps documentation elsewhere. */
  Registry& describe(const std::string&) { return *this; }

 private:
  explicit Registry(std::string name) : name_(std::move(name)) {}
  Registry& Set(const PackedFunc& function) {
    try {
      ffi::Function::SetGlobal(name_, function);
    } catch (const ffi::Error& error) {
      std::cerr << "TVM_REGISTER_GLOBAL(\"" << name_ << "\") ignored: " << error.message() << "\n";
    }
    return *this;
  }
  std::string name_;
};

}  // namespace compat
}  // namespace kvctl

// The names as 2024's code spells them.
namespace tvm {
namespace runtime {
using ffi::Array;
using ffi::make_object;
using ffi::Map;
using ffi::Object;
using ffi::ObjectPtr;
using ffi::ObjectRef;
using ffi::Optional;
using ffi::String;
using kvctl::compat::PackedFunc;
using kvctl::compat::Registry;
using kvctl::compat::TVMArgs;
using kvctl::compat::TVMArgValue;
using kvctl::compat::TVMRetValue;
using kvctl::compat::TypedPackedFunc;
using Module = ffi::Module;
using ShapeTuple = ffi::Shape;
using NDArray = Tensor;

/*!
 * \brief Base of a module whose functions are made on request, as llm_chat.cc's was.
 *
 * A subclass defines type_key and GetFunction with their signatures of 2024.
 */
class ModuleNode : public ffi::ModuleObj {
 public:
  virtual const char* type_key() const = 0;
  virtual PackedFunc GetFunction(const String& name, const ObjectPtr<Object>& sptr_to_self) = 0;

  const char* kind() const final { return type_key(); }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    PackedFunc function = GetFunction(name, ffi::GetObjectPtr<Object>(this));
    if (function == nullptr) return std::nullopt;
    return static_cast<const ffi::Function&>(function);
  }
};

}  // namespace runtime
}  // namespace tvm

#define KVCTL_COMPAT_CONCAT_(a, b) a##b
#define KVCTL_COMPAT_CONCAT(a, b) KVCTL_COMPAT_CONCAT_(a, b)
/*! \brief TVM_REGISTER_GLOBAL("name").set_body_typed(f) or .set_body(f), at namespace scope. */
#define TVM_REGISTER_GLOBAL(name)                                              \
  [[maybe_unused]] static const ::kvctl::compat::Registry KVCTL_COMPAT_CONCAT( \
      kvctl_compat_registration_, __COUNTER__) = ::kvctl::compat::Registry::Register(name)

// Checks of 2024, where nothing else defines them.
#ifndef ICHECK
#define ICHECK TVM_FFI_ICHECK
#define ICHECK_EQ TVM_FFI_ICHECK_EQ
#define ICHECK_NE TVM_FFI_ICHECK_NE
#define ICHECK_LT TVM_FFI_ICHECK_LT
#define ICHECK_LE TVM_FFI_ICHECK_LE
#define ICHECK_GT TVM_FFI_ICHECK_GT
#define ICHECK_GE TVM_FFI_ICHECK_GE
#endif
#ifndef CHECK
#define CHECK(condition) TVM_FFI_ICHECK(condition)
#define CHECK_EQ(a, b) TVM_FFI_ICHECK_EQ(a, b)
#endif

#endif  // KVCTL_REGISTRY_COMPAT_H_
