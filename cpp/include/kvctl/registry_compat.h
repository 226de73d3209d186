/*!
 * \file kvctl/registry_compat.h
 * \brief TVM's registration API of 2024 over today's registry.
 *
 * TVM no longer has TVM_REGISTER_GLOBAL, PackedFunc, TVMArgs and TVMRetValue. An extension from the
 * time of llm_chat.cc ports by including this header instead of
 *
 *     #include <tvm/runtime/module.h>
 *     #include <tvm/runtime/ndarray.h>
 *     #include <tvm/runtime/packed_func.h>
 *     #include <tvm/runtime/registry.h>
 *
 * What differs: integers that do not fit the parameter they are passed to are an error instead of
 * being cut, and a name that is already registered keeps its first function, with a line on stderr
 * (an exception would end the process while it loads the library). docs/coming_from.md has the
 * table of what is there and what to write instead of the rest.
 */
#ifndef KVCTL_REGISTRY_COMPAT_H_
#define KVCTL_REGISTRY_COMPAT_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/device.h>
#include <tvm/ffi/dtype.h>
#include <tvm/runtime/device_api.h>

#include <deque>
#include <iostream>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvctl/compat/checks.h"
#include "kvctl/compat/data_type.h"
#include "kvctl/compat/module.h"
#include "kvctl/compat/ndarray.h"
#include "kvctl/compat/object_macros.h"
#include "kvctl/packed_func_compat.h"

namespace kvctl {
namespace compat {

/*! \brief A name in TVM's registry. */
class Registry {
 public:
  /*! \param can_override whether a function that has the name already gives way. */
  static Registry& Register(const std::string& name, bool can_override = false) {
    // The reference of 2024 stayed valid, so every entry is kept.
    static std::mutex mutex;
    static auto* entries = new std::deque<Registry>();
    std::lock_guard<std::mutex> lock(mutex);
    entries->push_back(Registry(name, can_override));
    return entries->back();
  }

  /*! \return whether there was a function of this name. */
  static bool Remove(const std::string& name) {
    if (!ffi::Function::GetGlobal(name).has_value()) return false;
    ffi::Function::RemoveGlobal(name);
    return true;
  }

  static std::vector<ffi::String> ListNames() { return ffi::Function::ListGlobalNames(); }

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

  /*! \param body a function, a functor or a lambda. */
  template <typename F>
  Registry& set_body_typed(F body) {
    return Set(Pack(std::move(body)));
  }

  /*! \brief Sets a method of a reference: the function takes (the reference, its arguments). */
  template <typename R, typename C, typename... Args, bool kNoexcept>
  Registry& set_body_method(R (C::*method)(Args...) noexcept(kNoexcept)) {
    return SetMethod<R, C, C, Args...>(method);
  }
  template <typename R, typename C, typename... Args, bool kNoexcept>
  Registry& set_body_method(R (C::*method)(Args...) const noexcept(kNoexcept)) {
    return SetMethod<R, C, C, Args...>(method);
  }
  /*! \brief Sets a method of the object to which a Reference points. */
  template <typename Reference, typename R, typename C, typename... Args, bool kNoexcept,
            typename = std::enable_if_t<std::is_base_of_v<ffi::ObjectRef, Reference>>>
  Registry& set_body_method(R (C::*method)(Args...) noexcept(kNoexcept)) {
    return SetMethod<R, C, Reference, Args...>(method);
  }
  template <typename Reference, typename R, typename C, typename... Args, bool kNoexcept,
            typename = std::enable_if_t<std::is_base_of_v<ffi::ObjectRef, Reference>>>
  Registry& set_body_method(R (C::*method)(Args...) const noexcept(kNoexcept)) {
    return SetMethod<R, C, Reference, Args...>(method);
  }

  /*! \brief Accepted, as it was; today's registry keeps documentation elsewhere. */
  Registry& describe(const std::string&) { return *this; }

 private:
  Registry(std::string name, bool can_override)
      : name_(std::move(name)), can_override_(can_override) {}

  template <typename R, typename C, typename Reference, typename... Args, typename Method>
  Registry& SetMethod(Method method) {
    const auto call = [method](Reference target, auto&&... args) -> R {
      if constexpr (std::is_base_of_v<ffi::ObjectRef, C>) {
        return (target.*method)(std::forward<decltype(args)>(args)...);
      } else {
        const ffi::Object* object = static_cast<const ffi::ObjectRef&>(target).get();
        if (object == nullptr) TVM_FFI_THROW(TypeError) << "the method's object is null";
        return (const_cast<C*>(static_cast<const C*>(object))->*method)(
            std::forward<decltype(args)>(args)...);
      }
    };
    return Set(
        PackTyped<R, Reference, Args...>(call, std::index_sequence_for<Reference, Args...>{}));
  }

  Registry& Set(const PackedFunc& function) {
    try {
      ffi::Function::SetGlobal(name_, function, can_override_);
    } catch (const ffi::Error& error) {
      std::cerr << "TVM_REGISTER_GLOBAL(\"" << name_ << "\") ignored: " << error.message() << "\n";
    }
    return *this;
  }

  std::string name_;
  bool can_override_;
};

}  // namespace compat
}  // namespace kvctl

// The names as 2024's code spells them.
namespace tvm {
namespace runtime {
using ffi::Array;
using ffi::GetDataSize;
using ffi::GetObjectPtr;
using ffi::GetRef;
using ffi::IsContiguous;
using ffi::make_object;
using ffi::Map;
using ffi::Object;
using ffi::ObjectPtr;
using ffi::ObjectPtrEqual;
using ffi::ObjectPtrHash;
using ffi::ObjectRef;
using ffi::String;
using kvctl::compat::DataType;
using kvctl::compat::DLDataType2String;
using kvctl::compat::Downcast;
using kvctl::compat::Module;
using kvctl::compat::ModuleNode;
using kvctl::compat::ModulePropertyMask;
using kvctl::compat::NDArray;
using kvctl::compat::NullOpt;
using kvctl::compat::NullOptType;
using kvctl::compat::Optional;
using kvctl::compat::PackedFunc;
using kvctl::compat::Registry;
using kvctl::compat::String2DLDataType;
using kvctl::compat::TVMArgs;
using kvctl::compat::TVMArgsSetter;
using kvctl::compat::TVMArgValue;
using kvctl::compat::TVMRetValue;
using kvctl::compat::TypedPackedFunc;
using IntTuple = ffi::Shape;
using ShapeTuple = ffi::Shape;
}  // namespace runtime
using runtime::DataType;
using runtime::Downcast;
using runtime::NullOpt;
}  // namespace tvm
using kvctl::compat::TVMValue;

/*! \brief TVM_REGISTER_GLOBAL("name").set_body_typed(f) or .set_body(f), at namespace scope. */
#define TVM_REGISTER_GLOBAL(name)                                               \
  [[maybe_unused]] static const ::kvctl::compat::Registry& KVCTL_COMPAT_CONCAT( \
      kvctl_compat_registration_, __COUNTER__) = ::kvctl::compat::Registry::Register(name)

#endif  // KVCTL_REGISTRY_COMPAT_H_
