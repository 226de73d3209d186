/*!
 * \file kvctl/compat/type_code.h
 * \brief The type codes of 2024's packed arguments.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_TYPE_CODE_H_
#define KVCTL_COMPAT_TYPE_CODE_H_

#include <tvm/ffi/c_api.h>

// At global scope, as c_runtime_api.h had them; kDLInt, kDLUInt and kDLFloat are DLPack's.
enum TVMArgTypeCode : int {
  kTVMArgInt = 0,
  kTVMArgFloat = 2,
  kTVMOpaqueHandle = 3,
  kTVMNullptr = 4,
  kTVMDataType = 5,
  kDLDevice = 6,
  kTVMDLTensorHandle = 7,
  kTVMObjectHandle = 8,
  kTVMModuleHandle = 9,
  kTVMPackedFuncHandle = 10,
  kTVMStr = 11,
  kTVMBytes = 12,
  kTVMNDArrayHandle = 13,
  kTVMObjectRValueRefArg = 14,
};

namespace kvctl {
namespace compat {

/*!
 * \brief The code of 2024 for a value of today's type index.
 *
 * Two kinds have become types of their own since: a bool, whose code is kTVMArgInt, and a String,
 * whose code is kTVMStr, whether it was a C string or an object before.
 */
inline int TypeCode(int32_t type_index) {
  switch (type_index) {
    case kTVMFFINone:
      return kTVMNullptr;
    case kTVMFFIInt:
    case kTVMFFIBool:
      return kTVMArgInt;
    case kTVMFFIFloat:
      return kTVMArgFloat;
    case kTVMFFIOpaquePtr:
      return kTVMOpaqueHandle;
    case kTVMFFIDataType:
      return kTVMDataType;
    case kTVMFFIDevice:
      return kDLDevice;
    case kTVMFFIDLTensorPtr:
      return kTVMDLTensorHandle;
    case kTVMFFIRawStr:
    case kTVMFFISmallStr:
    case kTVMFFIStr:
      return kTVMStr;
    case kTVMFFIByteArrayPtr:
    case kTVMFFISmallBytes:
    case kTVMFFIBytes:
      return kTVMBytes;
    case kTVMFFIObjectRValueRef:
      return kTVMObjectRValueRefArg;
    case kTVMFFIFunction:
      return kTVMPackedFuncHandle;
    case kTVMFFITensor:
      return kTVMNDArrayHandle;
    case kTVMFFIModule:
      return kTVMModuleHandle;
    default:
      return kTVMObjectHandle;
  }
}

}  // namespace compat
}  // namespace kvctl

#endif  // KVCTL_COMPAT_TYPE_CODE_H_
