/*!
 * \file kernels/cpu/attention/attention_observe-inl.h
 * \brief Sums of the attention that each key got.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_OBSERVE_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_OBSERVE_INL_H_

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/attention/attention_kernel-inl.h"
#include "kernels/cpu/attention/attention_pack-inl.h"
#include "kernels/cpu/attention/attention_scratch-inl.h"
#include "kernels/cpu/attention/attention_tile-inl.h"

namespace kvctl {
namespace {

/*! \brief Adds the weights of a tile's queries to the sums of a block's keys. */
template <typename T>
inline void SumWeights(const AttentionArgs& args, const AttentionShape& shape,
                       const AttentionUnit& unit, const AttentionMass& mass,
                       const TilePass<T>& pass, const KeyBlock& block, int32_t index,
                       int32_t token_begin, int32_t token_end, float* key_sums) {
  const SequencePlan& sequence = args.sequences[unit.sequence];
  const bool by_kv_head = mass.num_heads == args.num_kv_heads;
  float sums[kTileKeys];
  for (int32_t head = 0; head < shape.group; ++head) {
    if (head == 0 || !by_kv_head) std::fill_n(sums, kTileKeys, 0.f);
    const int32_t qo_head = unit.kv_head * shape.group + head;
    for (int32_t token = token_begin; token < token_end; ++token) {
      const int32_t query = sequence.query_begin + token;
      const float lse = args.lse[int64_t{query} * args.num_qo_heads + qo_head];
      if (pass.Visible(index)[token - token_begin] == 0 || lse == kMinusInfinity) continue;
      const float* scores = pass.Scores(index, (token - token_begin) * shape.group + head);
      const Vec shift = Set(lse * kLog2E);
      for (int32_t c = 0; c < kTileKeys; c += kLanes) {
        Store(sums + c, Add(Load(sums + c), Exp2(Sub(Load(scores + c), shift))));
      }
    }
    if (by_kv_head && head + 1 < shape.group) continue;
    float* to = key_sums + int64_t{block.first_key} * mass.num_heads;
    to += by_kv_head ? unit.kv_head : qo_head;
    for (int32_t c = 0; c < kTileKeys; ++c) {
      if (block.present >> c & 1) to[int64_t{c} * mass.num_heads] += sums[c];
    }
  }
}

template <typename T>
void ObservePages(const AttentionArgs& args, const AttentionShape& shape, AttentionUnit unit,
                  const AttentionMass& mass, float* key_sums, float* scratch) {
  Scratch s = Layout(args, shape, scratch);
  const KeyFinder<T> finder(args, unit);
  const KeyPositions positions(args.sequences[unit.sequence]);
  const int32_t first = unit.token_begin, last = unit.token_end;
  for (int32_t begin = first; begin < last; begin = unit.token_end) {
    unit.token_begin = begin;
    unit.token_end = std::min(last, (begin / kBlockQueries + 1) * kBlockQueries);
    TilePass<AttendedType<T>> pass(args, shape, unit, positions, finder.value_offset(), s);
    const ScoreUnit score_unit((unit.token_end - begin) * shape.group);
    PackQueries(args, shape, unit, s.q);
    ChunkWalker walker(args.masks.plan(unit.sequence, unit.kv_head), begin / kBlockQueries);
    while (walker.Next()) {
      if (walker.chunk() < unit.chunk_begin || walker.chunk() >= unit.chunk_end) continue;
      ChunkKeys chunk = s.chunks[0];
      finder.Find(walker, &chunk);
      if (PacksAlways(args)) {
        chunk = PackChunk<T>(chunk, 0, args.head_dim, true, s);  // scores need no values
      }
      for (int32_t token = begin; token < unit.token_end; token += shape.tile_tokens) {
        const int32_t end = std::min(token + shape.tile_tokens, unit.token_end);
        pass.Score(token, end, chunk, nullptr);
        for (int32_t i = 0; i < chunk.num_blocks; ++i) {
          SumWeights(args, shape, unit, mass, pass, chunk.blocks[i], i, token, end, key_sums);
        }
      }
    }
  }
}

void Observe(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
             const AttentionMass& mass, float* key_sums, float* scratch) {
  WithPages(args.kv_dtype, [&](auto type) {
    ObservePages<decltype(type)>(args, shape, unit, mass, key_sums, scratch);
  });
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_OBSERVE_INL_H_
