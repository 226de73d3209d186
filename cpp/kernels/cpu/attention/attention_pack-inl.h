/*!
 * \file kernels/cpu/attention/attention_pack-inl.h
 * \brief Copies of keys and values in the form that the inner loops read.
 *
 * All that knows how a page holds its elements is WritePanel (keys) and Load (values). Pages of
 * another form need these two, or a PackChunk of their own that all their units use.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PACK_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PACK_INL_H_

#include <cstdint>

#include "kernels/cpu/attention/attention_panel-inl.h"
#include "kernels/cpu/attention/attention_scratch-inl.h"

namespace kvctl {
namespace {

/*! \brief Copies the keys of a chunk to `scratch` as panels, and the values in float32 unless they
 * are to stay `in_place`. Returns a chunk with these. */
template <typename T>
inline ChunkKeys PackChunk(const ChunkKeys& chunk, int64_t value_offset, int32_t head_dim,
                           bool in_place, const Scratch& scratch) {
  ChunkKeys packed = chunk;
  if (!in_place) packed.keys = scratch.packed_values;
  packed.panels = scratch.panels;
  float* to = scratch.packed;
  Fetcher none;
  for (int32_t i = 0; i < chunk.num_blocks * kTileKeys; ++i, to += head_dim + kPadding) {
    const T* const* keys = reinterpret_cast<const T* const*>(chunk.keys) + i;
    if (i % kPanelKeys == 0) {
      const uint64_t bits = chunk.blocks[i / kTileKeys].present >> i % kTileKeys;
      float* panel = scratch.panels + i / kPanelKeys * PanelFloats(head_dim);
      if ((bits & LowestBits(kPanelKeys)) != 0) {
        WriteKeys(keys, bits & LowestBits(kPanelKeys), 0, head_dim, &none, 0, panel);
      }
    }
    if (in_place) continue;
    packed.keys[i] = *keys != nullptr ? to : nullptr;
    if (*keys == nullptr) continue;
    const T* value = *keys + value_offset;
    for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + d, Load(value + d));
  }
  return packed;
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PACK_INL_H_
