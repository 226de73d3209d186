/*!
 * \file runtime/support/stream_scope.h
 * \brief Work goes to the stream on which the caller's framework works.
 *
 * TVM's current stream knows nothing of PyTorch's. A source, which the Python package gives, says
 * which stream that is.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_STREAM_SCOPE_H_
#define KVCTL_RUNTIME_SUPPORT_STREAM_SCOPE_H_

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <utility>

#include "runtime/support/device.h"
#include "runtime/support/guard.h"

namespace kvctl {

/*!
 * \brief Sets what names the stream of the caller's framework.
 * \param source f(device_id) -> cudaStream_t as an integer, 0 for the default stream; nullopt:
 * none.
 */
void SetStreamSource(const tvm::ffi::Optional<tvm::ffi::Function>& source);

/*!
 * \brief Makes the source's stream TVM's current one, from construction to destruction.
 *
 * Does nothing on the CPU, without a source, or where the caller has set TVM's stream: what is said
 * to TVM itself counts more.
 */
class StreamScope {
 public:
  explicit StreamScope(DLDevice device) : device_(device) {
    if (IsCuda(device)) Enter();
  }
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  void Enter();

  DLDevice device_;
  bool entered_ = false;
};

/*!
 * \brief Guarded, in a StreamScope of the device that DeviceOf(first argument) names.
 *
 * For functions that Python calls. The virtual methods that TVM calls stay on TVM's stream, where
 * the model that calls them runs.
 */
template <typename R, typename First, typename... Rest>
auto OnStream(R (*f)(First, Rest...)) {
  return [f](First first, Rest... rest) -> R {
    size_t index = 0;
    RequireGiven(first, index++);
    (RequireGiven(rest, index++), ...);
    return Guard([&]() -> R {
      const StreamScope scope(DeviceOf(first));
      return f(std::forward<First>(first), std::forward<Rest>(rest)...);
    });
  };
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_STREAM_SCOPE_H_
