/*!
 * \file runtime/cache/backend/cache_feature.h
 * \brief The one table of what the cache does on which device, with its refusals.
 */
#ifndef KVCTL_RUNTIME_CACHE_BACKEND_CACHE_FEATURE_H_
#define KVCTL_RUNTIME_CACHE_BACKEND_CACHE_FEATURE_H_

#include <vector>

namespace kvctl {

/*! \brief The devices for which there is a CacheBackend. */
enum class CacheDevice { kCpu, kCuda };

/*! \brief Features that some backend does not support. */
enum class CacheFeature {
  kInt8Pages,
  kFloat8Pages,
  kInlineRope,
  kPageSelector,
  kRenumberedSinks,
  kAttentionInParts,
  kAttentionSums,
  kRerotatedEviction,
  kPageGroupExport,
  kPageGroupImport,
  kWrittenCheck,
  kMLA,
  kLinearAttention,
  kDisaggregatedPrefill,
};

/*! \brief One row of the table. */
struct CacheCapability {
  CacheFeature feature;
  const char* name;         //!< as kvctl.cache.get_capabilities names it
  const char* description;  //!< as docs/machines/cuda.md lists it
  const char* refusal;      //!< the message where it is not supported
  bool on_cpu;
  bool on_cuda;

  bool On(CacheDevice device) const { return device == CacheDevice::kCpu ? on_cpu : on_cuda; }
};

/*! \brief The table, in the order of CacheFeature. */
const std::vector<CacheCapability>& CacheCapabilities();

const CacheCapability& CapabilityOf(CacheFeature feature);

/*! \throws Error kNotImplemented with the feature's refusal. */
[[noreturn]] void Refuse(CacheFeature feature);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_BACKEND_CACHE_FEATURE_H_
