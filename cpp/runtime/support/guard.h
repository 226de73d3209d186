/*!
 * \file runtime/support/guard.h
 * \brief Translates kvctl's errors to TVM FFI errors.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_GUARD_H_
#define KVCTL_RUNTIME_SUPPORT_GUARD_H_

#include <tvm/ffi/error.h>
#include <tvm/ffi/object.h>
#include <tvm/ffi/optional.h>

#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "kvctl/error.h"
#include "runtime/support/current_device.h"

namespace kvctl {

/*!
 * \brief The FFI error that an Error becomes.
 *
 * Its backtrace is the one line of C++ that threw. Python shows it as the last frame of the
 * traceback.
 */
inline tvm::ffi::Error ToFFIError(const Error& error) {
  const SourceLocation& where = error.where();
  return tvm::ffi::Error(ErrorKindName(error.kind()), error.what(),
                         "  File \"" + where.ShortFile() + "\", line " +
                             std::to_string(where.line) + ", in " + where.function + "\n");
}

/*!
 * \brief Runs f and turns what it throws into FFI errors.
 *
 * The current CUDA device is afterwards what it was before. Stands around every FFI entry and every
 * virtual method that TVM calls: an exception of another type would lose its kind at the boundary,
 * or abort the process.
 */
template <typename F>
auto Guard(F&& f) -> decltype(f()) {
  const KeepCurrentDevice device;
  try {
    return std::forward<F>(f)();
  } catch (const Error& error) {
    throw ToFFIError(error);
  } catch (const std::bad_alloc&) {
    throw tvm::ffi::Error("MemoryError", "kvctl could not allocate host memory", "");
  }
}

/*!
 * \brief Refuses None where a function takes an object: TVM FFI passes it as a null reference.
 *
 * What may be missing is an Optional.
 */
template <typename T>
void RequireGiven(const T& argument, size_t index) {
  namespace ffi = tvm::ffi;
  if constexpr (std::is_base_of_v<ffi::ObjectRef, T>) {
    if (!argument.defined()) {
      throw ToFFIError(Error(ErrorKind::kType, "argument " + std::to_string(index) +
                                                   " is None where an object is needed"));
    }
  }
}
template <typename T>
void RequireGiven(const tvm::ffi::Optional<T>&, size_t) {}

/*! \brief A function of the same signature as f, guarded: what registrations pass to
 * GlobalDef::def. */
template <typename R, typename... Args>
auto Guarded(R (*f)(Args...)) {
  return [f](Args... args) -> R {
    size_t index = 0;
    (RequireGiven(args, index++), ...);
    return Guard([&]() -> R { return f(std::forward<Args>(args)...); });
  };
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_GUARD_H_
