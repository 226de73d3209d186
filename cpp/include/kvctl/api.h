/*!
 * \file kvctl/api.h
 * \brief What libkvctl.so exports to C++ programs, and how a program makes it ready.
 */
#ifndef KVCTL_API_H_
#define KVCTL_API_H_

/*! \brief Marks what programs that link libkvctl.so may use; everything else is hidden. */
#define KVCTL_API __attribute__((visibility("default")))

namespace kvctl {

/*!
 * \brief Makes kvctl ready in a C++ program: call it once before anything else.
 *
 * Checks that the TVM libraries in this process are the builds that kvctl was compiled against,
 * tells TVM's thread pool neither to pin threads nor to spin (TVM_BIND_THREADS and
 * TVM_THREAD_POOL_SPIN_COUNT, unless they are set), and for "cuda" loads TVM's CUDA runtime.
 * OpenMP's threads wait with a short spin, unless the environment says otherwise: libkvctl.so sees
 * to that when it is loaded. Where OpenMP was loaded before it, that is too late, and Init warns
 * once on stderr. A
 * program that reaches kvctl through FFI functions alone must call it too, or the linker drops the
 * library (--as-needed).
 *
 * \param device "cpu" or "cuda".
 * \throws kvctl::Error kRuntime if the process holds another TVM; kValue for another device.
 */
KVCTL_API void Init(const char* device = "cpu");

}  // namespace kvctl

#endif  // KVCTL_API_H_
