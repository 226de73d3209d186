/*!
 * \file kvctl/compat/ndarray.h
 * \brief NDArray, Optional, Downcast and TVMSynchronize as they were in 2024.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_NDARRAY_H_
#define KVCTL_COMPAT_NDARRAY_H_

#include <tvm/ffi/any.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/optional.h>
#include <tvm/runtime/device_api.h>
#include <tvm/runtime/tensor.h>

#include <optional>
#include <type_traits>
#include <utility>

#include "kvctl/compat/data_type.h"
#include "kvctl/compat/packed_values.h"

namespace kvctl {
namespace compat {

/*! \brief Today's Tensor, whose shape and element type are those of 2024. */
class NDArray : public tvm::runtime::Tensor {
 public:
  NDArray() = default;
  NDArray(tvm::runtime::Tensor tensor) : Tensor(std::move(tensor)) {}  // NOLINT(*)
  NDArray(ffi::Tensor tensor) : Tensor(std::move(tensor)) {}           // NOLINT(*)
  explicit NDArray(ffi::ObjectPtr<ffi::TensorObj> data) : Tensor(std::move(data)) {}
  explicit NDArray(ffi::UnsafeInit tag) : Tensor(tag) {}

  ffi::Shape Shape() const { return this->shape(); }
  compat::DataType DataType() const { return this->dtype(); }

  static NDArray Empty(ffi::Shape shape, DLDataType dtype, DLDevice device,
                       ffi::Optional<ffi::String> mem_scope = std::nullopt) {
    return Tensor::Empty(std::move(shape), dtype, device, std::move(mem_scope));
  }
  static NDArray FromDLPack(DLManagedTensor* tensor) { return Tensor::FromDLPack(tensor); }
  DLManagedTensor* ToDLPack() const { return ffi::Tensor::ToDLPack(); }
  NDArray CreateView(ffi::Shape shape, DLDataType dtype, uint64_t relative_byte_offset = 0) const {
    return Tensor::CreateView(std::move(shape), dtype, relative_byte_offset);
  }
  using Tensor::CopyTo;
  NDArray CopyTo(const DLDevice& device,
                 ffi::Optional<ffi::String> mem_scope = std::nullopt) const {
    return Tensor::CopyTo(device, std::move(mem_scope));
  }
};

/*! \brief Today's Optional with defined(), which Optional<String> has no longer. */
template <typename T>
class Optional : public ffi::Optional<T> {
 public:
  using ffi::Optional<T>::Optional;
  Optional() = default;
  Optional(ffi::Optional<T> other) : ffi::Optional<T>(std::move(other)) {}  // NOLINT(*)
  bool defined() const { return this->has_value(); }
};

using NullOptType = std::nullopt_t;
inline constexpr NullOptType NullOpt = std::nullopt;

/*!
 * \brief value as a T.
 * \param value an object, an Any, an argument or a result.
 * \throws tvm::ffi::Error TypeError for an object of another type, and for null where T has none.
 */
template <typename T, typename Value>
T Downcast(const Value& value) {
  if constexpr (std::is_same_v<Value, TVMArgValue>) {
    return Convert<T>(value.view());
  } else if constexpr (std::is_same_v<Value, TVMRetValue>) {
    return Convert<T>(value.value());
  } else {
    return Convert<T>(ffi::AnyView(value));
  }
}

}  // namespace compat
}  // namespace kvctl

template <typename T>
inline constexpr bool tvm::ffi::use_default_type_traits_v<kvctl::compat::Optional<T>> = false;
template <typename T>
struct tvm::ffi::TypeTraits<kvctl::compat::Optional<T>>
    : kvctl::compat::AnyTraits<kvctl::compat::Optional<T>, tvm::ffi::Optional<T>> {};

/*! \brief Waits for the work of a stream, nullptr for the default one. \return 0. */
inline int TVMSynchronize(int device_type, int device_id, TVMStreamHandle stream) {
  const DLDevice device{static_cast<DLDeviceType>(device_type), device_id};
  tvm::runtime::DeviceAPI::Get(device)->StreamSync(device, stream);
  return 0;
}

#endif  // KVCTL_COMPAT_NDARRAY_H_
