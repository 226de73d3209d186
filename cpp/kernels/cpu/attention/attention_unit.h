/*!
 * \file kernels/cpu/attention/attention_unit.h
 * \brief Units of work that attention's scheduler passes to the kernels of an instruction set.
 */
#ifndef KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_UNIT_H_
#define KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_UNIT_H_

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"

namespace kvctl {

/*! \brief A token of a unit with queries of several sequences. */
struct SharedToken {
  int64_t query;         //!< among the new tokens of the batch
  float* partials;       //!< of the unit that merges the results of its sequence
  int32_t unit_queries;  //!< queries of that unit
  int32_t first_query;   //!< the token's first among them
};

/*! \brief The most KV heads in a unit. */
constexpr int32_t kUnitHeads = 8;

/*!
 * \brief One unit of work: some tokens of one sequence, the query heads of one KV head, some
 * chunks. Or one token and the query heads of several KV heads, which are adjacent in a page: long
 * runs are read faster than short ones.
 *
 * A *query* is a (token, query head) pair: query t * QueriesPerToken + i of the unit is token
 * token_begin + t, head kv_head * group + i.
 */
struct AttentionUnit {
  int32_t sequence;
  int32_t kv_head;    //!< the first of num_heads
  int32_t num_heads;  //!< KV heads; 1 where there are several tokens
  int32_t token_begin,
      token_end;  //!< within the sequence's new tokens, all in one block of the mask
  int32_t chunk_begin, chunk_end;  //!< ordinals among the chunks that the block sees
  /*! \brief nullptr: the unit has all chunks and writes the output. Otherwise PartialFloats for
   * each chunk of the block: receives a partial result per chunk. */
  float* partials;
  /*! \brief nullptr, or [token_end] tokens of several sequences that share these chunks and see all
   * of them; `sequence` is one of these. */
  const SharedToken* shared;
};

/*! \brief Sizes that follow from the arguments, the same for all units. */
struct AttentionShape {
  int32_t group;           //!< query heads per KV head
  int32_t tile_tokens;     //!< tokens whose queries are computed together
  int32_t unit_tokens;     //!< the most tokens, or KV heads, in a unit
  int32_t max_key_blocks;  //!< the most key blocks in a chunk
  int64_t scratch_floats;  //!< of each thread
  /*! \brief Whether K and V are too large for a cache: memory then has more requests on the way
   * where they go to the second level only. */
  bool from_memory;
};

/*! \brief The functions that are compiled once per instruction set. */
struct AttentionKernels {
  int32_t head_dims;  //!< head_dim must be a multiple of it
  /*! \brief Floats of scratch that a thread needs. */
  int64_t (*scratch)(const AttentionArgs& args, const AttentionShape& shape);
  /*! \brief Computes a unit: writes the output of its queries, or its partial results. */
  void (*attend)(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
                 float* scratch);
  /*! \brief Merges the partial results of all `num_chunks` chunks of a unit's queries, and writes
   * the output. */
  void (*finish)(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
                 int32_t num_chunks, float* scratch);
  /*!
   * \brief Adds the attention of the unit's tokens to its keys. Its chunks are numbers here, not
   * ordinals, and its tokens may lie in several blocks.
   * \param key_sums Of the unit's sequence: [kv_len, mass.num_heads].
   */
  void (*observe)(const AttentionArgs& args, const AttentionShape& shape, const AttentionUnit& unit,
                  const AttentionMass& mass, float* key_sums, float* scratch);
};

extern const AttentionKernels kAttentionBaseline;
extern const AttentionKernels kAttentionAvx2;
extern const AttentionKernels kAttentionAvx512;
extern const AttentionKernels kAttentionAmx;  //!< only for pages of bfloat16

// Anonymous on purpose: files compiled for different instruction sets must not share a copy.
namespace {

/*! \brief The lowest n bits, for n in [0, 64]. */
inline uint64_t LowestBits(int32_t n) {
  return n >= kTileKeys ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}

/*! \brief Queries of each token of a unit. */
inline int32_t QueriesPerToken(const AttentionShape& shape, const AttentionUnit& unit) {
  return shape.group * unit.num_heads;
}

/*! \brief Full vectors are read from partial maxima: padding behind them, in floats. */
constexpr int32_t kPartialPadding = 16;

/*! \brief Floats of a chunk's partial results for some queries: m and l of each, then acc. */
inline int64_t PartialFloats(int32_t queries, int32_t head_dim) {
  return int64_t(queries) * (head_dim + 2) + kPartialPadding;
}

/*! \brief Walks the chunks in which a block of a plan sees something. */
class ChunkWalker {
 public:
  ChunkWalker(const MaskPlan& plan, int32_t block)
      : spans_(plan.spans.data()), at_(plan.blocks[block]), last_(plan.blocks[block + 1]) {}

  /*! \brief Moves to the next chunk. Returns false at the end. */
  bool Next() {
    const int32_t next = chunk_ + 1;
    while (at_ < last_ && LastChunk(spans_[at_]) < next) ++at_;
    if (at_ == last_) return false;
    chunk_ = std::max(next, FirstChunk(spans_[at_]));
    return true;
  }

  int32_t chunk() const { return chunk_; }
  /*! \brief Spans [first(), last()) include those of the chunk; stop at one that begins behind it.
   */
  int32_t first() const { return at_; }
  int32_t last() const { return last_; }

  static int32_t FirstChunk(const MaskSpan& span) {
    return span.chunk >= 0 ? span.chunk : span.begin / kChunkKeys;
  }
  static int32_t LastChunk(const MaskSpan& span) {
    return span.chunk >= 0 ? span.chunk : (span.end - 1) / kChunkKeys;
  }

 private:
  const MaskSpan* spans_;
  int32_t at_, last_;
  int32_t chunk_ = -1;
};

}  // namespace
}  // namespace kvctl

#endif  // KVCTL_KERNELS_CPU_ATTENTION_ATTENTION_UNIT_H_
