/*!
 * \file kvctl/compat/any_traits.h
 * \brief How a type of 2024 travels through packed calls as the type of today that it stands for.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_ANY_TRAITS_H_
#define KVCTL_COMPAT_ANY_TRAITS_H_

#include <tvm/ffi/any.h>

#include <optional>
#include <utility>

namespace kvctl {
namespace compat {

namespace ffi = tvm::ffi;

/*!
 * \brief Base of TypeTraits<Old>: every conversion goes through Today.
 * \tparam Old converts to Today and is constructed from it.
 */
template <typename Old, typename Today>
struct AnyTraits : ffi::TypeTraits<Today> {
  using Base = ffi::TypeTraits<Today>;
  static void CopyToAnyView(const Old& value, TVMFFIAny* any) {
    Base::CopyToAnyView(static_cast<const Today&>(value), any);
  }
  static void MoveToAny(Old value, TVMFFIAny* any) {
    Base::MoveToAny(static_cast<const Today&>(value), any);
  }
  static Old CopyFromAnyViewAfterCheck(const TVMFFIAny* any) {
    return Old(Base::CopyFromAnyViewAfterCheck(any));
  }
  static Old MoveFromAnyAfterCheck(TVMFFIAny* any) { return Old(Base::MoveFromAnyAfterCheck(any)); }
  static std::optional<Old> TryCastFromAnyView(const TVMFFIAny* any) {
    std::optional<Today> value = Base::TryCastFromAnyView(any);
    if (!value.has_value()) return std::nullopt;
    return Old(*std::move(value));
  }
};

}  // namespace compat
}  // namespace kvctl

#endif  // KVCTL_COMPAT_ANY_TRAITS_H_
