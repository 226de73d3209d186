/*!
 * \file kernels/cpu/attention/attention_kernel-inl.h
 * \brief Attention of one unit of work.
 *
 * Partial results are merged in the order of chunks, so that the result is the same however the
 * work was cut. (Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867, eq. 6; partial
 * results over the sequence: Dao et al. 2023, "Flash-Decoding".)
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_KERNEL_INL_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_KERNEL_INL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "kernels/convert.h"
#include "kernels/cpu/attention/attention_pack-inl.h"
#include "kernels/cpu/attention/attention_scratch-inl.h"
#include "kernels/cpu/attention/attention_tile-inl.h"
#include "kernels/cpu/simd/with_type.h"

namespace kvctl {
namespace {

/*! \brief Packs the queries of a token, one after another. */
template <typename From>
inline void PackToken(const From* from, int32_t queries, int32_t head_dim, float scale, float* to) {
  for (int32_t i = 0; i < queries; ++i) {
    PackQuery(from + i * head_dim, head_dim, scale, to + i * QueryFloats(head_dim));
  }
}

/*! \brief Packs the queries of a unit, one after another. */
inline void PackQueries(const AttentionArgs& args, const AttentionShape& shape,
                        const AttentionUnit& unit, float* to) {
  const int64_t query_begin = args.sequences[unit.sequence].query_begin;
  const int32_t queries = QueriesPerToken(shape, unit), head_dim = args.head_dim;
  const bool plain = args.soft_cap <= 0 && args.alibi_slopes == nullptr;
  const float scale = plain ? args.sm_scale * kLog2E : 1.f;
  for (int32_t token = unit.token_begin; token < unit.token_end; ++token) {
    const int64_t query = unit.shared != nullptr ? unit.shared[token].query : query_begin + token;
    const int64_t at = query * args.q_row_stride + int64_t(unit.kv_head) * shape.group * head_dim;
    if (args.q_dtype == DType::kFloat32) {
      PackToken(static_cast<const float*>(args.q) + at, queries, head_dim, scale, to);
    } else if (args.q_dtype == DType::kFloat16) {
      PackToken(static_cast<const Float16*>(args.q) + at, queries, head_dim, scale, to);
    } else {
      PackToken(static_cast<const BFloat16*>(args.q) + at, queries, head_dim, scale, to);
    }
    to += queries * QueryFloats(head_dim);
  }
}

inline void ClearTotals(const Scratch& s, int32_t queries) {
  std::fill_n(s.total_m, queries, kMinusInfinity);
  std::fill_n(s.total_l, queries, 0.f);
}

/*! \brief Merges a chunk's partial results (m, l, acc of each query) into the totals from `first`.
 */
inline void Merge(const float* m, const float* l, const float* acc, int32_t queries,
                  int32_t head_dim, const Scratch& s, int32_t first) {
  float before[kLanes], now[kLanes];
  for (int32_t query = 0; query < queries; ++query) {
    float* total_m = s.total_m + first + query;
    float* total_l = s.total_l + first + query;
    float* total = s.total + int64_t(first + query) * head_dim;
    const float* add = acc + int64_t(query) * head_dim;
    if (query % kLanes == 0) {
      // May read past the last query, into padding, and uses none of it.
      const Vec largest = Max(Load(m + query), Load(total_m));
      Store(before, Exp2(Sub(Load(total_m), largest)));
      Store(now, Exp2(Sub(Load(m + query), largest)));
    }
    if (m[query] == kMinusInfinity) continue;
    if (*total_m == kMinusInfinity) {
      *total_m = m[query];
      *total_l = l[query];
      std::copy_n(add, head_dim, total);
      continue;
    }
    const float old_scale = before[query % kLanes], new_scale = now[query % kLanes];
    *total_m = std::max(*total_m, m[query]);
    *total_l = *total_l * old_scale + l[query] * new_scale;
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      Store(total + d, Fma(Load(add + d), Set(new_scale), Mul(Load(total + d), Set(old_scale))));
    }
  }
}

/*! \brief 2^x of one number. */
inline float Exp2(float x) {
  float lanes[kLanes];
  Store(lanes, Exp2(Set(x)));
  return lanes[0];
}

/*! \brief Writes the output of the unit's queries from their totals. */
inline void WriteOutputs(const AttentionArgs& args, const AttentionShape& shape,
                         const AttentionUnit& unit, const Scratch& s) {
  const int32_t per_token = QueriesPerToken(shape, unit);
  const int32_t queries = (unit.token_end - unit.token_begin) * per_token;
  for (int32_t r = 0; r < queries; ++r) {
    const int64_t token =
        args.sequences[unit.sequence].query_begin + unit.token_begin + r / per_token;
    const int32_t head = unit.kv_head * shape.group + r % per_token;
    float m = s.total_m[r], l = s.total_l[r], factor = 1.f;
    const bool sees = m != kMinusInfinity;
    if (args.sinks != nullptr) {
      const float sink = args.sinks[head] * kLog2E;
      const float largest = std::max(m, sink);
      factor = sees ? Exp2(m - largest) : 0.f;
      l = (sees ? l * factor : 0.f) + Exp2(sink - largest);
      m = largest;
    }
    if (args.lse != nullptr) {
      args.lse[token * args.num_qo_heads + head] =
          m == kMinusInfinity ? m : (m + std::log2(l)) * kLn2;
    }
    float* total = s.total + int64_t(r) * args.head_dim;
    for (int32_t d = 0; d < args.head_dim; d += kLanes) {
      Store(total + d, sees ? Div(Mul(Load(total + d), Set(factor)), Set(l)) : Zero());
    }
    const int64_t at = token * args.out_row_stride + int64_t(head) * args.head_dim;
    if (args.out_dtype == DType::kFloat32) {
      std::copy_n(total, args.head_dim, static_cast<float*>(args.out) + at);
    } else if (args.out_dtype == DType::kFloat16) {
      auto* out = static_cast<Float16*>(args.out) + at;
      for (int32_t d = 0; d < args.head_dim; ++d) FromFloat(total[d], out + d);
    } else {
      auto* out = static_cast<BFloat16*>(args.out) + at;
      for (int32_t d = 0; d < args.head_dim; ++d) FromFloat(total[d], out + d);
    }
  }
}

/*! \brief Partial results of one chunk, as stored in a unit's `partials`. */
struct Partials {
  float *m, *l, *acc;

  Partials(float* partials, int32_t queries, int32_t head_dim, int32_t ordinal)
      : m(partials + int64_t(ordinal) * PartialFloats(queries, head_dim)),
        l(m + queries + kPartialPadding),
        acc(l + queries) {}

  /*! \brief Stores the results of a tile's queries from `from` on as those of queries from `to` on.
   */
  void Keep(const Scratch& s, int32_t from, int32_t to, int32_t queries, int32_t head_dim) const {
    std::copy_n(s.m + from, queries, m + to);
    std::copy_n(s.l + from, queries, l + to);
    float* kept = acc + int64_t(to) * head_dim;
    const float* sums = s.acc + int64_t(from) * head_dim;
    if (kept != sums) std::copy_n(sums, int64_t(queries) * head_dim, kept);
  }
};

template <typename T>
void AttendPages(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
                 float* scratch) {
  Scratch s = Layout(args, shape, scratch);
  float* const tile_acc = s.acc;
  const KeyFinder<T> finder(args, unit);
  const KeyPositions positions(args.sequences[unit.sequence]);
  const ReadAhead<T> ahead(args, shape, unit.num_heads, finder.value_offset());
  TilePass<AttendedType<T>> pass(args, shape, unit, positions, finder.value_offset(), s);
  const bool in_place = ValuesStay(args);
  TilePass<float> packed_pass(args, shape, unit, positions, in_place ? finder.value_offset() : 0,
                              s);
  const int32_t head_dim = args.head_dim;
  const int32_t per_token = QueriesPerToken(shape, unit);
  const int32_t unit_queries = (unit.token_end - unit.token_begin) * per_token;
  const ScoreUnit score_unit(unit_queries / unit.num_heads);
  ClearTotals(s, unit_queries);
  PackQueries(args, shape, unit, s.q);

  ChunkWalker walker(args.masks.plan(unit.sequence, unit.kv_head),
                     unit.token_begin / kBlockQueries);
  bool found = walker.Next();
  for (int32_t skip = 0; found && skip < unit.chunk_begin; ++skip) found = walker.Next();
  if (found) finder.Find(walker, &s.chunks[unit.chunk_begin % 2]);
  for (int32_t ordinal = unit.chunk_begin; found && ordinal < unit.chunk_end; ++ordinal) {
    const ChunkKeys& chunk = s.chunks[ordinal % 2];
    ChunkKeys& next = s.chunks[(ordinal + 1) % 2];
    found = ordinal + 1 < unit.chunk_end && walker.Next();
    next.num_blocks = 0;
    if (found) finder.Find(walker, &next);
    const bool packs =
        chunk.num_blocks > 0 &&  // a page selector may leave out all of a chunk
        (PacksAlways(args) || (unit.num_heads == 1 && PacksChunks(args, unit_queries) &&
                               chunk.num_blocks <= kPackedBlocks));
    ChunkKeys packed;
    Fetcher fetcher;
    if (packs) {
      packed = PackChunk<T>(chunk, finder.value_offset(), head_dim, in_place, s);
      int64_t bytes = 0;
      if (next.num_blocks <= kPackedBlocks) fetcher = ahead.FindChunk(next, s.runs, &bytes);
      const int64_t tiles = (unit.token_end - unit.token_begin - 1) / shape.tile_tokens + 1;
      const int64_t keys = tiles * chunk.num_blocks * kTileKeys;
      const int64_t score_bytes = bytes * kScoresPercent / 100;
      packed_pass.Prefetch(bytes > 0 ? &fetcher : nullptr, score_bytes * kPanelKeys / keys,
                           (bytes - score_bytes) / keys);
    }
    for (int32_t token = unit.token_begin; token < unit.token_end; token += shape.tile_tokens) {
      const int32_t end = std::min(token + shape.tile_tokens, unit.token_end);
      const int32_t first = (token - unit.token_begin) * per_token;
      const int32_t queries = (end - token) * per_token;
      if (unit.partials != nullptr) {
        // The sums arise where they are kept, unless that would cut cache lines in two.
        float* kept = Partials(unit.partials, unit_queries, head_dim, ordinal).acc;
        const bool aligned = reinterpret_cast<uintptr_t>(kept) % kLineBytes == 0;
        s.acc = aligned ? kept + int64_t{first} * head_dim : tile_acc;
      }
      if (packs) {
        packed_pass.Run(token, end, packed, nullptr);
      } else {
        pass.Run(token, end, chunk, token == unit.token_begin ? &next : nullptr);
      }
      if (unit.shared != nullptr) {
        for (int32_t i = token; i < end; ++i) {
          const SharedToken& sharer = unit.shared[i];
          Partials(sharer.partials, sharer.unit_queries, head_dim, ordinal)
              .Keep(s, (i - token) * per_token, sharer.first_query, per_token, head_dim);
        }
      } else if (unit.partials != nullptr) {
        Partials(unit.partials, unit_queries, head_dim, ordinal)
            .Keep(s, 0, first, queries, head_dim);
      } else {
        Merge(s.m, s.l, s.acc, queries, head_dim, s, first);
      }
    }
  }
  if (unit.partials == nullptr && unit.shared == nullptr) WriteOutputs(args, shape, unit, s);
}

/*! \brief Calls f with a value of the pages' type, one of those that the kernels are for. */
template <typename F>
void WithPages([[maybe_unused]] DType dtype, F&& f) {
#if defined(__AMX_BF16__)
  f(BFloat16{});
#else
  if (dtype == DType::kInt8) return f(int8_t{});
  WithType(dtype, std::forward<F>(f));
#endif
}

void Attend(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
            float* scratch) {
  WithPages(args.kv_dtype,
            [&](auto type) { AttendPages<decltype(type)>(args, shape, unit, scratch); });
}

void Finish(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
            int32_t num_chunks, float* scratch) {
  const Scratch s = Layout(args, shape, scratch);
  const int32_t queries = (unit.token_end - unit.token_begin) * QueriesPerToken(shape, unit);
  ClearTotals(s, queries);
  for (int32_t ordinal = 0; ordinal < num_chunks; ++ordinal) {
    const Partials partial(unit.partials, queries, args.head_dim, ordinal);
    Merge(partial.m, partial.l, partial.acc, queries, args.head_dim, s, 0);
  }
  WriteOutputs(args, shape, unit, s);
}

int64_t ScratchFloats(const AttentionArgs& args, const AttentionShape& shape) {
  return Layout(args, shape, nullptr).size;
}

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_KERNEL_INL_H_
