/*!
 * \file kvctl/packed_func_compat.h
 * \brief PackedFunc, TVMArgs and TVMRetValue as they were in 2024, over today's ffi::Function.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_PACKED_FUNC_COMPAT_H_
#define KVCTL_PACKED_FUNC_COMPAT_H_

#include <tvm/ffi/any.h>
#include <tvm/ffi/cast.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/object.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <functional>
#include <type_traits>
#include <utility>

#include "kvctl/compat/packed_values.h"

namespace kvctl {
namespace compat {

/*! \brief A type-erased function; nullptr where there is none. */
class PackedFunc : public ffi::Function {
 public:
  using FType = std::function<void(TVMArgs args, TVMRetValue* rv)>;

  PackedFunc() : ffi::Function(nullptr) {}
  PackedFunc(std::nullptr_t) : ffi::Function(nullptr) {}                      // NOLINT(*)
  PackedFunc(ffi::Function function) : ffi::Function(std::move(function)) {}  // NOLINT(*)
  /*! \brief What a module's GetFunction gives: nullptr where it has none. */
  PackedFunc(ffi::Optional<ffi::Function> found)  // NOLINT(*)
      : ffi::Function(found.has_value() ? *found : ffi::Function(nullptr)) {}
  PackedFunc(const TVMArgValue& value)
      : PackedFunc(Convert<PackedFunc>(value.view())) {}  // NOLINT(*)
  PackedFunc(const TVMRetValue& value)
      : PackedFunc(Convert<PackedFunc>(value.value())) {}  // NOLINT(*)
  /*! \param body void(TVMArgs args, TVMRetValue* rv). */
  template <typename Body,
            typename = std::enable_if_t<std::is_invocable_v<Body&, TVMArgs, TVMRetValue*>>>
  explicit PackedFunc(Body body)
      : ffi::Function(ffi::Function::FromPacked(
            [body = std::move(body)](ffi::PackedArgs args, ffi::Any* result) mutable {
              TVMRetValue value;
              body(TVMArgs(args), &value);
              *result = value.value();
            })) {}

  template <typename... Args>
  TVMRetValue operator()(Args&&... args) const {
    return TVMRetValue(ffi::Function::operator()(Unwrap(std::forward<Args>(args))...));
  }
  void CallPacked(TVMArgs args, TVMRetValue* result) const {
    ffi::Any value;
    ffi::Function::CallPacked(args.packed(), &value);
    *result = std::move(value);
  }

 private:
  template <typename T>
  static decltype(auto) Unwrap(T&& value) {
    if constexpr (std::is_same_v<std::decay_t<T>, TVMArgValue>) {
      return value.view();
    } else if constexpr (std::is_same_v<std::decay_t<T>, TVMRetValue>) {
      return value.value();
    } else {
      return std::forward<T>(value);
    }
  }
};

/*! \brief body's packed form; its arguments are converted as TVMArgValue converts them. */
template <typename R, typename... Args, typename F, size_t... I>
PackedFunc PackTyped(F body, std::index_sequence<I...>) {
  return PackedFunc([body](TVMArgs args, TVMRetValue* result) mutable {
    if (args.size() != static_cast<int>(sizeof...(Args))) {
      TVM_FFI_THROW(TypeError) << "expected " << sizeof...(Args) << " arguments, got "
                               << args.size();
    }
    if constexpr (std::is_void_v<R>) {
      body(args.At<std::decay_t<Args>>(I)...);
      (void)result;
    } else {
      *result = body(args.At<std::decay_t<Args>>(I)...);
    }
  });
}

/*! \brief The packed form of a function pointer, a functor or a lambda, noexcept or not. */
template <typename F, typename Signature = decltype(&F::operator())>
struct TypedSignature;
template <typename F, typename C, typename R, typename... Args, bool kNoexcept>
struct TypedSignature<F, R (C::*)(Args...) const noexcept(kNoexcept)> {
  static PackedFunc Pack(F body) {
    return PackTyped<R, Args...>(std::move(body), std::index_sequence_for<Args...>{});
  }
};
template <typename F, typename C, typename R, typename... Args, bool kNoexcept>
struct TypedSignature<F, R (C::*)(Args...) noexcept(kNoexcept)>
    : TypedSignature<F, R (C::*)(Args...) const> {};

template <typename F>
PackedFunc Pack(F body) {
  return TypedSignature<F>::Pack(std::move(body));
}
template <typename R, typename... Args, bool kNoexcept>
PackedFunc Pack(R (*body)(Args...) noexcept(kNoexcept)) {
  return PackTyped<R, Args...>(body, std::index_sequence_for<Args...>{});
}

template <typename Signature>
class TypedPackedFunc;

/*! \brief A packed function whose arguments and result have types. */
template <typename R, typename... Args>
class TypedPackedFunc<R(Args...)> {
  template <typename F>
  static constexpr bool kPacked = std::is_convertible_v<F, PackedFunc>;

 public:
  TypedPackedFunc() = default;
  TypedPackedFunc(std::nullptr_t) {}                                     // NOLINT(*)
  TypedPackedFunc(PackedFunc packed) : packed_(std::move(packed)) {}     // NOLINT(*)
  TypedPackedFunc(ffi::Function packed) : packed_(std::move(packed)) {}  // NOLINT(*)
  TypedPackedFunc(const TVMArgValue& value) : packed_(value) {}          // NOLINT(*)
  TypedPackedFunc(const TVMRetValue& value) : packed_(value) {}          // NOLINT(*)
  /*! \param body a function or a lambda with this signature. */
  template <typename F, typename = std::enable_if_t<
                            std::is_convertible_v<F, std::function<R(Args...)>> && !kPacked<F>>>
  TypedPackedFunc(F body)  // NOLINT(*)
      : packed_(PackTyped<R, Args...>(std::move(body), std::index_sequence_for<Args...>{})) {}
  template <typename F>
  TypedPackedFunc(F body, const std::string& /*name*/) : TypedPackedFunc(std::move(body)) {}

  R operator()(Args... args) const {
    if constexpr (std::is_void_v<R>) {
      packed_(std::forward<Args>(args)...);
    } else {
      return packed_(std::forward<Args>(args)...);
    }
  }
  operator PackedFunc() const { return packed_; }  // NOLINT(*)
  explicit operator const ffi::Function&() const { return packed_; }
  const PackedFunc& packed() const { return packed_; }
  bool operator==(std::nullptr_t) const { return packed_ == nullptr; }
  bool operator!=(std::nullptr_t) const { return packed_ != nullptr; }

 private:
  PackedFunc packed_;
};

}  // namespace compat
}  // namespace kvctl

/*! \cond The tool that reads these comments does not know the template of tvm-ffi. */
template <typename Signature>
struct tvm::ffi::TypeTraits<kvctl::compat::TypedPackedFunc<Signature>>
    : kvctl::compat::AnyTraits<kvctl::compat::TypedPackedFunc<Signature>, tvm::ffi::Function> {};
/*! \endcond */

#endif  // KVCTL_PACKED_FUNC_COMPAT_H_
