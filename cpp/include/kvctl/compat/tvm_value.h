/*!
 * \file kvctl/compat/tvm_value.h
 * \brief TVMValue and TVMArgsSetter: a packed call whose arguments are put together one by one.
 *
 * TVMValue was a union without a type, beside an array of type codes. A value of today carries its
 * type, so filling, copying and passing on arguments works as it did, and only reading or writing
 * the union's members does not compile.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_TVM_VALUE_H_
#define KVCTL_COMPAT_TVM_VALUE_H_

#include <tvm/ffi/any.h>

#include <cstddef>
#include <type_traits>
#include <utility>

#include "kvctl/compat/type_code.h"

namespace kvctl {
namespace compat {

namespace ffi = tvm::ffi;

/*! \brief A member of the old union: any use of it is an error that says what to write. */
struct NoRawMember {
  template <typename T>
  operator T() const {  // NOLINT(*)
    static_assert(!sizeof(T*),
                  "TVMValue has no raw members: read args[i] as the type you want, for example "
                  "int64_t n = args[i]; or void* p = args[i];");
    return T();
  }
  template <typename T>
  const NoRawMember& operator=(const T&) const {
    static_assert(!sizeof(T*),
                  "TVMValue has no raw members: fill arguments with TVMArgsSetter(values, "
                  "type_codes)(i, value)");
    return *this;
  }
};

/*! \brief A view of a value with its type. What it was set to must live as long as it does. */
class TVMValue : public ffi::AnyView {
 public:
  TVMValue() = default;
  explicit TVMValue(ffi::AnyView value) : ffi::AnyView(value) {}

  static constexpr NoRawMember v_int64{};
  static constexpr NoRawMember v_float64{};
  static constexpr NoRawMember v_handle{};
  static constexpr NoRawMember v_str{};
  static constexpr NoRawMember v_type{};
  static constexpr NoRawMember v_device{};
};
// An array of TVMValue is passed on as an array of AnyView.
static_assert(sizeof(TVMValue) == sizeof(ffi::AnyView));

/*! \brief What args.values was: args.values[i], args.values + n. */
class TVMValues {
 public:
  TVMValues(const ffi::AnyView* data) : data_(data) {}  // NOLINT(*)
  TVMValue operator[](size_t i) const { return TVMValue(data_[i]); }
  TVMValues operator+(std::ptrdiff_t n) const { return data_ + n; }
  const ffi::AnyView* data() const { return data_; }

 private:
  const ffi::AnyView* data_;
};

/*! \brief What args.type_codes was: args.type_codes[i], args.type_codes + n. */
class TVMTypeCodes {
 public:
  TVMTypeCodes(const ffi::AnyView* data) : data_(data) {}  // NOLINT(*)
  TVMTypeCodes(const int* codes) : codes_(codes) {}        // NOLINT(*)
  int operator[](size_t i) const {
    return codes_ != nullptr ? codes_[i] : TypeCode(data_[i].type_index());
  }
  TVMTypeCodes operator+(std::ptrdiff_t n) const {
    return codes_ != nullptr ? TVMTypeCodes(codes_ + n) : TVMTypeCodes(data_ + n);
  }

 private:
  const ffi::AnyView* data_ = nullptr;
  const int* codes_ = nullptr;
};

/*! \brief Whether a T has a view of its value, as TVMArgValue has. */
template <typename T, typename = void>
inline constexpr bool kHasView = false;
template <typename T>
inline constexpr bool kHasView<T, std::void_t<decltype(std::declval<const T&>().view())>> = true;

/*! \brief Fills arrays of arguments: setter(i, value). */
class TVMArgsSetter {
 public:
  TVMArgsSetter(TVMValue* values, int* type_codes) : values_(values), type_codes_(type_codes) {}

  /*! \param value what a packed function takes; it must outlive the call. */
  template <typename T>
  void operator()(size_t i, T&& value) const {
    using Bare = std::decay_t<T>;
    static_assert(std::is_lvalue_reference_v<T> || std::is_trivially_copyable_v<Bare>,
                  "the value would not outlive the call: give it a name first");
    values_[i] = TVMValue(View(value));
    type_codes_[i] = TypeCode(values_[i].type_index());
  }

 private:
  template <typename T>
  static ffi::AnyView View(const T& value) {
    if constexpr (ffi::TypeTraits<T>::convert_enabled || std::is_same_v<T, ffi::Any>) {
      return value;
    } else if constexpr (kHasView<T>) {  // a TVMArgValue
      return value.view();
    } else {  // a TVMRetValue
      return value.value();
    }
  }

  TVMValue* values_;
  int* type_codes_;
};

}  // namespace compat
}  // namespace kvctl

#endif  // KVCTL_COMPAT_TVM_VALUE_H_
