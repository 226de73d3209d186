/*!
 * \file kvctl/compat/data_type.h
 * \brief DataType as it was in 2024, over DLPack's DLDataType.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_DATA_TYPE_H_
#define KVCTL_COMPAT_DATA_TYPE_H_

#include <tvm/ffi/dtype.h>

#include <cstdint>
#include <ostream>
#include <string>

#include "kvctl/compat/any_traits.h"

namespace kvctl {
namespace compat {

/*! \brief A type of elements. DataType::Bool() is DLPack's own boolean, no longer an integer. */
class DataType {
 public:
  enum TypeCode {
    kInt = kDLInt,
    kUInt = kDLUInt,
    kFloat = kDLFloat,
    kHandle = kDLOpaqueHandle,
    kBFloat = kDLBfloat,
  };

  DataType() : data_(Void().data_) {}
  DataType(DLDataType dtype) : data_(dtype) {}  // NOLINT: implicit
  DataType(int code, int bits, int lanes)
      : data_{static_cast<uint8_t>(code), static_cast<uint8_t>(bits),
              static_cast<uint16_t>(lanes)} {}
  operator DLDataType() const { return data_; }  // NOLINT: implicit
  explicit operator const DLDataType&() const { return data_; }

  static DataType Int(int bits, int lanes = 1) { return DataType(kDLInt, bits, lanes); }
  static DataType UInt(int bits, int lanes = 1) { return DataType(kDLUInt, bits, lanes); }
  static DataType Float(int bits, int lanes = 1) { return DataType(kDLFloat, bits, lanes); }
  static DataType BFloat(int bits, int lanes = 1) { return DataType(kDLBfloat, bits, lanes); }
  static DataType Bool(int lanes = 1) { return DataType(kDLBool, 8, lanes); }
  static DataType Handle(int bits = 64, int lanes = 1) {
    return DataType(kDLOpaqueHandle, bits, lanes);
  }
  static DataType Void() { return DataType(kDLOpaqueHandle, 0, 0); }

  int code() const { return data_.code; }
  int bits() const { return data_.bits; }
  int bytes() const { return (data_.bits + 7) / 8; }
  int lanes() const { return static_cast<int16_t>(data_.lanes); }
  bool is_scalar() const { return lanes() == 1; }
  bool is_vector() const { return lanes() > 1; }
  bool is_float() const { return code() == kDLFloat; }
  bool is_float16() const { return is_float() && bits() == 16; }
  bool is_bfloat16() const { return code() == kDLBfloat && bits() == 16; }
  bool is_int() const { return code() == kDLInt; }
  bool is_uint() const { return code() == kDLUInt; }
  bool is_bool() const { return code() == kDLBool || (is_uint() && bits() == 1); }
  bool is_handle() const { return code() == kDLOpaqueHandle && !is_void(); }
  bool is_void() const { return code() == kDLOpaqueHandle && bits() == 0 && lanes() == 0; }
  DataType with_lanes(int lanes) const { return DataType(code(), bits(), lanes); }
  DataType with_bits(int bits) const { return DataType(code(), bits, lanes()); }
  DataType element_of() const { return with_lanes(1); }

  bool operator==(const DataType& other) const { return data_ == other.data_; }
  bool operator!=(const DataType& other) const { return !(*this == other); }
  friend std::ostream& operator<<(std::ostream& out, const DataType& dtype) {
    return out << dtype.data_;
  }

 private:
  DLDataType data_;
};

inline std::string DLDataType2String(DLDataType dtype) { return ffi::DLDataTypeToString(dtype); }
inline DLDataType String2DLDataType(const std::string& name) {
  return ffi::StringToDLDataType(name);
}

}  // namespace compat
}  // namespace kvctl

template <>
struct tvm::ffi::TypeTraits<kvctl::compat::DataType>
    : kvctl::compat::AnyTraits<kvctl::compat::DataType, DLDataType> {};

#endif  // KVCTL_COMPAT_DATA_TYPE_H_
