#include "runtime/cache/backend/cache_feature.h"

#include "kvctl/error.h"

namespace kvctl {

const std::vector<CacheCapability>& CacheCapabilities() {
  static const std::vector<CacheCapability> kTable = {
      {CacheFeature::kInt8Pages, "int8_pages", "pages of 8-bit integers (`dtype=\"int8\"`)",
       "int8 pages are not implemented on CUDA devices", true, false},
      {CacheFeature::kFloat8Pages, "float8_pages",
       "pages of 8-bit floats (`dtype=\"float8_e4m3fn\"`)",
       "float8_e4m3fn pages are implemented on CUDA devices only; the CPU has int8 pages", false,
       true},
      {CacheFeature::kInlineRope, "inline_rope", "inline RoPE",
       "inline RoPE is not implemented on CUDA devices", true, false},
      {CacheFeature::kPageSelector, "page_selector", "page selectors",
       "a page selector is not implemented on CUDA devices", true, true},
      {CacheFeature::kRenumberedSinks, "renumbered_sinks", "windows that renumber their sinks",
       "a sliding window that renumbers its sinks is not implemented on CUDA devices", true, true},
      {CacheFeature::kAttentionInParts, "attention_in_parts",
       "attention in parts (TVM's self, cross and merge functions)",
       "attention in parts is not implemented on CUDA devices", true, false},
      {CacheFeature::kAttentionSums, "attention_sums",
       "sums of attention (`mass=` and `observe_attention`)",
       "what tokens get of attention is summed up on the CPU only", true, true},
      {CacheFeature::kRerotatedEviction, "rerotated_eviction", "`evict(rerotate=True)`",
       "evict with rerotate=True is not implemented on CUDA devices", true, true},
      {CacheFeature::kPageGroupExport, "page_group_export", "the export of page groups",
       "the export of page groups is not implemented on CUDA devices", true, false},
      {CacheFeature::kPageGroupImport, "page_group_import", "the import of page groups",
       "the import of page groups is not implemented on CUDA devices", true, false},
      {CacheFeature::kWrittenCheck, "written_check", "checks of K and V (`kvctl.checking`)",
       "K and V are checked on the CPU only: leave kvctl.checking, or unset KVCTL_CHECK", true,
       false},
      {CacheFeature::kMLA, "mla", "MLA (multi-head latent attention)",
       "kvctl's paged cache does not support MLA (multi-head latent attention)", false, false},
      {CacheFeature::kLinearAttention, "linear_attention", "linear attention",
       "kvctl's paged cache does not support linear attention", false, false},
      {CacheFeature::kDisaggregatedPrefill, "disaggregated_prefill",
       "disaggregated prefill (KV sent over NVSHMEM)",
       "kvctl's paged cache does not support disaggregated prefill (KV sent over NVSHMEM)", false,
       false},
  };
  return kTable;
}

const CacheCapability& CapabilityOf(CacheFeature feature) {
  return CacheCapabilities()[static_cast<size_t>(feature)];
}

void Refuse(CacheFeature feature) {
  Throw(ErrorKind::kNotImplemented, CapabilityOf(feature).refusal);
}

}  // namespace kvctl
