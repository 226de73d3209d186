/*!
 * \file kvctl/compat/checks.h
 * \brief CHECK and ICHECK of 2024, where nothing else has defined them.
 *
 * Part of kvctl/registry_compat.h, which extensions include. A check that fails throws
 * tvm::ffi::Error of kind InternalError; LOG(FATAL) comes from tvm/runtime/logging.h.
 */
#ifndef KVCTL_COMPAT_CHECKS_H_
#define KVCTL_COMPAT_CHECKS_H_

#include <tvm/ffi/error.h>
#include <tvm/runtime/logging.h>

#ifndef ICHECK
#define ICHECK(condition) TVM_FFI_ICHECK(condition)
#endif
#ifndef ICHECK_EQ
#define ICHECK_EQ(a, b) TVM_FFI_ICHECK_EQ(a, b)
#define ICHECK_NE(a, b) TVM_FFI_ICHECK_NE(a, b)
#define ICHECK_LT(a, b) TVM_FFI_ICHECK_LT(a, b)
#define ICHECK_LE(a, b) TVM_FFI_ICHECK_LE(a, b)
#define ICHECK_GT(a, b) TVM_FFI_ICHECK_GT(a, b)
#define ICHECK_GE(a, b) TVM_FFI_ICHECK_GE(a, b)
#define ICHECK_NOTNULL(a) TVM_FFI_ICHECK_NOTNULL(a)
#endif
#ifndef CHECK
#define CHECK(condition) TVM_FFI_ICHECK(condition)
#endif
#ifndef CHECK_EQ
#define CHECK_EQ(a, b) TVM_FFI_ICHECK_EQ(a, b)
#define CHECK_NE(a, b) TVM_FFI_ICHECK_NE(a, b)
#define CHECK_LT(a, b) TVM_FFI_ICHECK_LT(a, b)
#define CHECK_LE(a, b) TVM_FFI_ICHECK_LE(a, b)
#define CHECK_GT(a, b) TVM_FFI_ICHECK_GT(a, b)
#define CHECK_GE(a, b) TVM_FFI_ICHECK_GE(a, b)
#define CHECK_NOTNULL(a) TVM_FFI_ICHECK_NOTNULL(a)
#endif
#ifndef DCHECK
#define DCHECK(condition) TVM_FFI_DCHECK(condition)
#endif
#ifndef DCHECK_EQ
#define DCHECK_EQ(a, b) TVM_FFI_DCHECK_EQ(a, b)
#define DCHECK_NE(a, b) TVM_FFI_DCHECK_NE(a, b)
#define DCHECK_LT(a, b) TVM_FFI_DCHECK_LT(a, b)
#define DCHECK_LE(a, b) TVM_FFI_DCHECK_LE(a, b)
#define DCHECK_GT(a, b) TVM_FFI_DCHECK_GT(a, b)
#define DCHECK_GE(a, b) TVM_FFI_DCHECK_GE(a, b)
#endif

#endif  // KVCTL_COMPAT_CHECKS_H_
