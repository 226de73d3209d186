/*!
 * \file kernels/cpu/linear/linear_onednn.h
 * \brief The optional oneDNN plugin (libkvctl_onednn.so), opened on first use.
 */
#ifndef KVCTL_KERNELS_CPU_LINEAR_LINEAR_ONEDNN_H_
#define KVCTL_KERNELS_CPU_LINEAR_LINEAR_ONEDNN_H_

#include <cstddef>
#include <cstdint>

namespace kvctl {

/*! \brief The functions of the plugin. They throw std::bad_alloc or kvctl::Error (kRuntime). */
struct OneDNNPlugin {
  int32_t version;  //!< kOneDNNPluginVersion of the library that was opened
  size_t (*packed_bytes)(int64_t n, int64_t k);
  void (*pack)(const float* weight, int64_t n, int64_t k, void* packed);
  /*! \brief out (m, n) = x (m, k) * packed + addend (m, n; may be nullptr or out). */
  void (*linear)(const float* x, int64_t m, const void* packed, int64_t n, int64_t k,
                 const float* addend, float* out);
};

constexpr int32_t kOneDNNPluginVersion = 1;
constexpr char kOneDNNPluginSymbol[] = "kvctl_onednn_plugin";

/*! \brief The plugin beside libkvctl.so, or nullptr if it or oneDNN is not installed. */
const OneDNNPlugin* OneDNN();

}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_LINEAR_LINEAR_ONEDNN_H_
