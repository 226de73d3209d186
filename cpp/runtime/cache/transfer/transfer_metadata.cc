#include "runtime/cache/transfer/transfer_metadata.h"

#include <algorithm>
#include <cstdio>
#include <iomanip>
#include <limits>
#include <locale>
#include <optional>
#include <sstream>
#include <type_traits>

#include "kvctl/error.h"
#include "runtime/cache/backend/cache_backend.h"
#include "runtime/support/json.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

constexpr int64_t kFormatVersion = 1;
constexpr const char* kCacheType = "relax.vm.PagedAttentionKVCache";
constexpr const char* kGroupLayout = "1,num_logical_pages,2,num_kv_heads,page_size,qk_head_dim";
// TVM has no such pages, so that only kvctl's caches exchange them.
constexpr const char* kInt8GroupLayout =
    "1,num_logical_pages,2,num_kv_heads,page_size,qk_head_dim+float32_scale";

const char* RopeModeName(RopeMode mode) {
  switch (mode) {
    case RopeMode::kNone:
      return "none";
    case RopeMode::kNormal:
      return "normal";
    case RopeMode::kInline:
      return "inline";
  }
  return "";
}

/*! \brief The layout's fields in TVM's order; f(name, value) for each. */
template <typename F>
void ForEachLayoutField(const PagedKVCacheConfig& config, F&& f) {
  f("format_version", kFormatVersion);
  f("cache_type", std::string(kCacheType));
  f("page_size", config.page_size);
  f("num_layers", config.num_layers);
  f("layer_begin", config.first_layer);
  f("layer_end", config.first_layer + config.num_layers);
  f("num_qo_heads", config.num_qo_heads);
  f("num_kv_heads", config.num_kv_heads);
  f("qk_head_dim", config.head_dim);
  f("v_head_dim", config.head_dim);
  f("dtype", std::string(ffi::DLDataTypeToString(config.dtype)));
  f("rope_mode", std::string(RopeModeName(config.rope_mode)));
  f("rotary_scale", config.rope_scale);
  f("rotary_theta", config.rope_theta);
  f("has_rope_ext_factors", false);
  f("support_sliding_window", false);
  f("support_layer_sliding_window", false);
  const bool int8 = PageDType(config.dtype) == DType::kInt8;
  f("page_group_layout", std::string(int8 ? kInt8GroupLayout : kGroupLayout));
}

void CheckSupported(const PagedKVCacheConfig& config) {
  if (!config.layer_windows.empty()) {
    Throw(ErrorKind::kNotImplemented,
          "page groups, TVM's format, have no place for windows of layers; save_sequence has");
  }
  if (config.rope_ext_factors.has_value()) {
    Throw(ErrorKind::kNotImplemented,
          "page groups, TVM's format, have no place for RoPE extension factors; save_sequence has");
  }
}

int64_t NumPages(const PagedKVCacheConfig& config, int64_t length) {
  return (length + config.page_size - 1) / config.page_size;
}

json::Array GroupShape(const PagedKVCacheConfig& config, int64_t num_pages) {
  return {int64_t{1},          num_pages,        int64_t{2},
          config.num_kv_heads, config.page_size, PageShapeOf(config).row_elements()};
}

json::Array Groups(const PagedKVCacheConfig& config, int64_t num_pages) {
  json::Array groups;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    json::Object group;
    group.Set("group_index", layer);
    group.Set("layer_begin", config.first_layer + layer);
    group.Set("layer_end", config.first_layer + layer + 1);
    group.Set("num_logical_pages", num_pages);
    group.Set("dtype", ffi::DLDataTypeToString(config.dtype));
    group.Set("shape", GroupShape(config, num_pages));
    group.Set("nbytes", num_pages * PageShapeOf(config).num_bytes());
    groups.push_back(group);
  }
  return groups;
}

json::Array Pages(const PagedKVCacheConfig& config, int64_t length) {
  json::Array pages;
  for (int64_t page = 0; page < NumPages(config, length); ++page) {
    json::Object entry;
    entry.Set("logical_page_index", page);
    entry.Set("start_pos", page * config.page_size);
    entry.Set("length", std::min(config.page_size, length - page * config.page_size));
    pages.push_back(entry);
  }
  return pages;
}

json::Array AttentionKinds(const PagedKVCacheConfig& config) {
  json::Array kinds;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) kinds.push_back(ffi::String("mha"));
  return kinds;
}

std::string Text(const ffi::Any& value) { return std::string(json::Stringify(value)); }

/*! \brief Whether a value is the expected one; an object may have more members. */
bool Matches(const ffi::Any& given, const ffi::Any& expected) {
  if (auto object = expected.as<json::Object>()) {
    auto other = given.as<json::Object>();
    if (!other) return false;
    for (const auto& [name, value] : *object) {
      const auto found = other->find(name);
      if (found == other->end() || !Matches((*found).second, value)) return false;
    }
    return true;
  }
  if (auto array = expected.as<json::Array>()) {
    auto other = given.as<json::Array>();
    if (!other || other->size() != array->size()) return false;
    for (size_t i = 0; i < array->size(); ++i) {
      if (!Matches((*other)[i], (*array)[i])) return false;
    }
    return true;
  }
  // Numbers may have been written with or without a fraction.
  const std::optional<double> x = given.try_cast<double>(), y = expected.try_cast<double>();
  return x.has_value() && y.has_value() ? *x == *y : Text(given) == Text(expected);
}

json::Object Metadata(const PagedKVCacheConfig& config, int64_t seq_id, int64_t length) {
  json::Object metadata;
  ForEachLayoutField(config, [&](const char* name, auto value) {
    if constexpr (std::is_same_v<decltype(value), std::string>) {
      metadata.Set(name, ffi::String(value));
    } else {
      metadata.Set(name, value);
    }
  });
  metadata.Set("attn_kinds", AttentionKinds(config));
  metadata.Set("layout_hash", ffi::String(LayoutHash(config)));
  metadata.Set("seq_id", seq_id);
  metadata.Set("seq_length", length);
  metadata.Set("logical_pages", Pages(config, length));
  metadata.Set("groups", Groups(config, NumPages(config, length)));
  return metadata;
}

}  // namespace

std::string LayoutHash(const PagedKVCacheConfig& config) {
  CheckSupported(config);
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << std::setprecision(std::numeric_limits<double>::max_digits10);
  ForEachLayoutField(
      config, [&](const char* name, const auto& value) { text << name << "=" << value << ";"; });
  text << "attn_kinds=";
  for (int64_t layer = 0; layer < config.num_layers; ++layer) text << (layer > 0 ? ",mha" : "mha");
  // FNV-1a, 64 bits (Fowler, Noll, Vo; RFC 9923).
  uint64_t hash = 14695981039346656037ULL;
  for (unsigned char byte : text.str()) hash = (hash ^ byte) * 1099511628211ULL;
  char hex[17];
  std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(hash));
  return hex;
}

std::string TransferMetadata(const PagedKVCacheConfig& config, int64_t seq_id, int64_t length) {
  json::Object metadata = Metadata(config, seq_id, length);
  metadata.Set("reserved_num_seqs", std::max<int64_t>(config.max_sequences, 1));
  metadata.Set("num_total_pages", config.num_pages);
  metadata.Set("prefill_chunk_size", config.prefill_chunk_size);
  return std::string(json::Stringify(metadata));
}

int64_t CheckTransferMetadata(const PagedKVCacheConfig& config, int64_t seq_id,
                              const std::string& metadata) {
  const std::string document = "checkpoint metadata";
  const JsonObject given = ParseJsonObject(metadata, document);
  const auto length = GetMember<int64_t>(given, "seq_length", document);
  if (length < 0 || length > config.num_pages * config.page_size) {
    Throw(ErrorKind::kValue, document, ": a sequence of ", length,
          " tokens does not fit the cache, which has room for ",
          config.num_pages * config.page_size);
  }
  for (const auto& [name, expected] : Metadata(config, seq_id, length)) {
    const std::string key = std::string(name.template cast<ffi::String>());
    const auto found = given.find(ffi::String(key));
    if (found == given.end()) Throw(ErrorKind::kValue, document, ": '", key, "' is missing");
    if (Matches((*found).second, expected)) continue;
    Throw(ErrorKind::kValue, document, ": '", key, "' is ", Text((*found).second),
          " where this cache has ", Text(expected));
  }
  return length;
}

}  // namespace kvctl
