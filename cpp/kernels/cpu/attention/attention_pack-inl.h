/*!
 * \file kernels/cpu/attention/attention_pack-inl.h
 * \brief Copies of keys and values in the form that the inner loops read.
 *
 * All that knows how a page holds its elements is PackPanel (keys) and UnpackRow (values), and
 * where nothing is copied WritePanel and Load. Attention over 8-bit pages is that over the float32
 * values which they stand for, bit for bit: their chunks are always copied.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PACK_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PACK_INL_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/attention/attention_panel-inl.h"
#include "kernels/cpu/attention/attention_scratch-inl.h"

namespace kvctl {
namespace {

/*! \brief What the loops of attention read, of pages of T. */
template <typename T>
using AttendedType = std::conditional_t<std::is_same_v<T, int8_t>, float, T>;

/*! \brief A row of a key or value in float32. */
template <typename T>
inline void UnpackRow(const T* row, int32_t head_dim, float* to) {
  for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + d, Load(row + d));
}
inline void UnpackRow(const int8_t* row, int32_t head_dim, float* to) {
  float factor;
  std::memcpy(&factor, row + head_dim, sizeof(factor));
  const Vec scale = Set(factor);
  for (int32_t d = 0; d < head_dim; d += kLanes) Store(to + d, Mul(Load(row + d), scale));
}

/*! \brief Copies the keys whose bit is set, of kPanelKeys keys, as a panel. */
template <typename T>
inline void PackPanel(const T* const* keys, uint64_t bits, int32_t head_dim, const Scratch&,
                      float* panel) {
  Fetcher none;
  WriteKeys(keys, bits, 0, head_dim, &none, 0, panel);
}
inline void PackPanel(const int8_t* const* keys, uint64_t bits, int32_t head_dim,
                      const Scratch& scratch, float* panel) {
  const float* rows[kPanelKeys];
  float* row = scratch.panel;  // of no use to a chunk that has panels
  for (int32_t i = 0; i < kPanelKeys; ++i, row += head_dim) {
    rows[i] = row;
    if (bits >> i & 1) UnpackRow(keys[i], head_dim, row);
  }
  Fetcher none;
  WriteKeys(rows, bits, 0, head_dim, &none, 0, panel);
}

/*! \brief Copies the keys of a chunk to `scratch` as panels, and the values in float32 unless they
 * are to stay `in_place`. Returns a chunk with these. */
template <typename T>
inline ChunkKeys PackChunk(const ChunkKeys& chunk, int64_t value_offset, int32_t head_dim,
                           bool in_place, const Scratch& scratch) {
  ChunkKeys packed = chunk;
  if (!in_place) packed.keys = scratch.packed_values;
  packed.panels = scratch.panels;
  float* to = scratch.packed;
  for (int32_t i = 0; i < chunk.num_blocks * kTileKeys; ++i, to += head_dim + kPadding) {
    const T* const* keys = reinterpret_cast<const T* const*>(chunk.keys) + i;
    if (i % kPanelKeys == 0) {
      const uint64_t bits = chunk.blocks[i / kTileKeys].present >> i % kTileKeys;
      float* panel = scratch.panels + i / kPanelKeys * PanelFloats(head_dim);
      if ((bits & LowestBits(kPanelKeys)) != 0) {
        PackPanel(keys, bits & LowestBits(kPanelKeys), head_dim, scratch, panel);
      }
    }
    if (in_place) continue;
    packed.keys[i] = *keys != nullptr ? to : nullptr;
    if (*keys == nullptr) continue;
    UnpackRow(*keys + value_offset, head_dim, to);
  }
  return packed;
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_PACK_INL_H_
