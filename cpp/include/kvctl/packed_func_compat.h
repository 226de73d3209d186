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

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

namespace kvctl {
namespace compat {

namespace ffi = tvm::ffi;

class PackedFunc;

/*!
 * \brief value as a T.
 * \throws tvm::ffi::Error TypeError for a value of another type, ValueError for an integer that T
 * cannot hold.
 */
template <typename T, typename Value>
T Convert(const Value& value) {
  if constexpr (std::is_same_v<T, PackedFunc>) {
    return T(value.template cast<ffi::Function>());
  } else if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool> &&
                       sizeof(T) < sizeof(int64_t)) {
    const auto wide = value.template cast<int64_t>();
    if (wide < int64_t{std::numeric_limits<T>::min()} ||
        wide > int64_t{std::numeric_limits<T>::max()}) {
      TVM_FFI_THROW(ValueError) << wide << " does not fit into an integer of " << sizeof(T)
                                << " bytes";
    }
    return static_cast<T>(wide);
  } else {
    return value.template cast<T>();
  }
}

/*! \brief One argument, which becomes what it is assigned to. Valid during the call. */
class TVMArgValue {
 public:
  TVMArgValue(ffi::AnyView value) : value_(value) {}  // NOLINT(*)
  template <typename T>
  operator T() const {  // NOLINT(*)
    return Convert<T>(value_);
  }
  ffi::AnyView view() const { return value_; }
  template <typename T>
  T AsObjectRef() const {
    return value_.cast<T>();
  }
  template <typename T>
  bool IsObjectRef() const {
    return value_.as<T>().has_value();
  }
  bool operator==(std::nullptr_t) const { return value_ == nullptr; }
  bool operator!=(std::nullptr_t) const { return value_ != nullptr; }

 private:
  ffi::AnyView value_;
};

/*! \brief The arguments of a packed call. Valid during the call. */
class TVMArgs {
 public:
  TVMArgs(ffi::PackedArgs args) : num_args(args.size()), args_(args) {}  // NOLINT(*)
  const int num_args;
  int size() const { return args_.size(); }
  /*! \throws tvm::ffi::Error IndexError outside [0, size()). */
  TVMArgValue operator[](int i) const {
    if (i < 0 || i >= size()) {
      TVM_FFI_THROW(IndexError) << "argument " << i << " of a call with " << size() << " arguments";
    }
    return args_[i];
  }
  template <typename T>
  T At(int i) const {
    return (*this)[i];
  }
  ffi::PackedArgs packed() const { return args_; }

 private:
  ffi::PackedArgs args_;
};

/*! \brief What a packed call returned: assigned inside, converted outside. */
class TVMRetValue {
 public:
  TVMRetValue() = default;
  explicit TVMRetValue(ffi::Any value) : value_(std::move(value)) {}
  template <typename T>
  TVMRetValue& operator=(T&& value) {
    if constexpr (std::is_same_v<std::decay_t<T>, TVMArgValue>) {
      value_ = value.view();
    } else {
      value_ = std::forward<T>(value);
    }
    return *this;
  }
  TVMRetValue(const TVMRetValue&) = default;
  TVMRetValue(TVMRetValue&&) = default;
  TVMRetValue& operator=(const TVMRetValue&) = default;
  TVMRetValue& operator=(TVMRetValue&) = default;
  TVMRetValue& operator=(TVMRetValue&&) = default;
  template <typename T>
  operator T() const {  // NOLINT(*)
    return Convert<T>(value_);
  }
  template <typename T>
  T AsObjectRef() const {
    return value_.cast<T>();
  }
  bool operator==(std::nullptr_t) const { return value_ == nullptr; }
  bool operator!=(std::nullptr_t) const { return value_ != nullptr; }
  const ffi::Any& value() const { return value_; }

 private:
  ffi::Any value_;
};

/*! \brief A type-erased function; nullptr where there is none. */
class PackedFunc : public ffi::Function {
 public:
  PackedFunc() : ffi::Function(nullptr) {}
  PackedFunc(std::nullptr_t) : ffi::Function(nullptr) {}                      // NOLINT(*)
  PackedFunc(ffi::Function function) : ffi::Function(std::move(function)) {}  // NOLINT(*)
  /*! \brief What a module's GetFunction gives: nullptr where it has none. */
  PackedFunc(ffi::Optional<ffi::Function> found)  // NOLINT(*)
      : ffi::Function(found.has_value() ? *found : ffi::Function(nullptr)) {}
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

/*! \brief A function with a signature: what TypedPackedFunc was. */
template <typename Signature>
using TypedPackedFunc = ffi::TypedFunction<Signature>;

}  // namespace compat
}  // namespace kvctl

#endif  // KVCTL_PACKED_FUNC_COMPAT_H_
