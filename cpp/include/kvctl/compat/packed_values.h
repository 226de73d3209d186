/*!
 * \file kvctl/compat/packed_values.h
 * \brief TVMArgs, TVMArgValue and TVMRetValue as they were in 2024, over today's Any.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_PACKED_VALUES_H_
#define KVCTL_COMPAT_PACKED_VALUES_H_

#include <tvm/ffi/any.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/object.h>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "kvctl/compat/any_traits.h"
#include "kvctl/compat/tvm_value.h"
#include "kvctl/compat/type_code.h"

namespace kvctl {
namespace compat {

class PackedFunc;
class TVMArgValue;
class TVMRetValue;

/*!
 * \brief value as a T.
 * \throws tvm::ffi::Error TypeError for a value of another type, ValueError for an integer that T
 * cannot hold.
 */
template <typename T, typename Value>
T Convert(const Value& value) {
  if constexpr (std::is_same_v<T, PackedFunc>) {
    return T(value.template cast<ffi::Function>());
  } else if constexpr (std::is_same_v<T, TVMArgValue> || std::is_same_v<T, TVMRetValue>) {
    return T(value);
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
  /*! \brief The TVMArgTypeCode of the value, see TypeCode. */
  int type_code() const { return TypeCode(value_.type_index()); }
  /*! \brief The value as TVMArgsSetter takes it. */
  TVMValue value() const { return TVMValue(value_); }
  ffi::AnyView view() const { return value_; }
  /*! \brief The opaque handle as a T*. */
  template <typename T>
  T* ptr() const {
    return static_cast<T*>(value_.cast<void*>());
  }
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
  TVMArgs(ffi::PackedArgs args)  // NOLINT(*)
      : values(args.data()), type_codes(args.data()), num_args(args.size()) {}
  /*! \brief What a TVMArgsSetter filled; each value knows its type, so type_codes is not read. */
  TVMArgs(TVMValues values, TVMTypeCodes type_codes, int num_args)
      : values(values), type_codes(type_codes), num_args(num_args) {}

  const TVMValues values;
  const TVMTypeCodes type_codes;
  const int num_args;

  int size() const { return num_args; }
  /*! \throws tvm::ffi::Error IndexError outside [0, size()). */
  TVMArgValue operator[](int i) const {
    if (i < 0 || i >= size()) {
      TVM_FFI_THROW(IndexError) << "argument " << i << " of a call with " << size() << " arguments";
    }
    return values.data()[i];
  }
  template <typename T>
  T At(int i) const {
    return Convert<T>((*this)[i].view());
  }
  ffi::PackedArgs packed() const { return ffi::PackedArgs(values.data(), num_args); }
  /*! \brief For today's functions that take packed arguments, such as disco's CallWithPacked. */
  operator ffi::PackedArgs() const { return packed(); }  // NOLINT(*)
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
  /*! \brief The TVMArgTypeCode of the value, see TypeCode. */
  int type_code() const { return TypeCode(value_.type_index()); }
  /*! \brief The opaque handle as a T*. */
  template <typename T>
  T* ptr() const {
    return static_cast<T*>(value_.cast<void*>());
  }
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
  const ffi::Any& value() const { return value_; }

 private:
  ffi::Any value_;
};

}  // namespace compat
}  // namespace kvctl

#endif  // KVCTL_COMPAT_PACKED_VALUES_H_
