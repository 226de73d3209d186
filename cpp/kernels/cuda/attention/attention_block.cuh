/*!
 * \file kernels/cuda/attention/attention_block.cuh
 * \brief A block of the attention kernel: its queries against the keys that it copies.
 *
 * A block processes work items: up to 64 queries (new tokens x the query heads of a KV head; of
 * one sequence, or of several that share pages) against the tiles of keys that the mask shows.
 * Asynchronous copies load K and V from their pages, one or two steps ahead of the tensor cores.
 * The softmax is computed online (Milakov & Gimelshein 2018, arXiv:1805.02867; in registers as Dao
 * 2023, arXiv:2307.08691). Few items are split along the keys into several that leave partial
 * results, which the last of their blocks merges.
 *
 * Longer than 300 lines: it is one class, whose steps share registers. With one of them in a
 * function of its own, ptxas allocates other registers, and spills some with head_dim 64.
 */
#ifndef KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_BLOCK_CUH_
#define KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_BLOCK_CUH_

#include "kernels/cuda/attention/attention_float8.cuh"
#include "kernels/cuda/attention/attention_merge.cuh"
#include "kernels/cuda/attention/attention_tile.cuh"
#include "kernels/cuda/device/elements.cuh"

namespace kvctl::cuda {

/*! \brief T: of the pages. kShaped: scores have a soft cap or ALiBi, or heads see pages of their
 * own. Its own kernel, since that code costs the plain one registers in its innermost loop. */
template <typename T, int kHeadDim, int kQueryWarps, bool kShaped>
class AttentionBlock {
  using S = TileShape<kHeadDim, kQueryWarps, sizeof(T)>;
  using Q = QueryOf<T>;
  static constexpr bool kFloat8 = sizeof(T) == 1;
  static constexpr int kQueryVectors = kHeadDim / 8;  // of 16 bytes
  static constexpr int kSize = 16 / sizeof(T);        // elements in 16 bytes of a key
  static constexpr int kVectors = kHeadDim / kSize;
  /*! \brief Threads that copy a key, a power of two; with some head_dims the last copy nothing. */
  static constexpr int kCopyThreads = kVectors <= 4    ? 4
                                      : kVectors <= 8  ? 8
                                      : kVectors <= 16 ? 16
                                                       : 32;

 public:
  /*! \param stages 2 or kMaxStages, the same for all blocks. */
  __device__ AttentionBlock(const AttentionParams& params, int32_t stages, unsigned char* shared)
      : params_(params),
        num_stages_(stages),
        flags_(reinterpret_cast<uint32_t*>(shared)),
        queries_(reinterpret_cast<Q*>(shared + S::kFlagBytes)),
        offsets_(reinterpret_cast<int64_t*>(shared + S::kFlagBytes + S::kQueryBytes)),
        positions_(reinterpret_cast<float*>(offsets_ + S::kRing * S::kKeys)),
        stages_(reinterpret_cast<T*>(positions_ + S::kRing * S::kKeys)),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        query_warp_(warp_ % kQueryWarps),
        key_warp_(warp_ / kQueryWarps) {}

  /*! \brief While a step is computed, the copies of the next num_stages - 1 are on their way. The
   * one barrier of a step says that its copies are done, that the stage of the step before is free,
   * and that the addresses of the step to fetch are known. */
  __device__ __forceinline__ void Run(const WorkItem& item) {
    Begin(item);
    TileCursor<S::kKeys> current(params_.plan, item), ahead(params_.plan, item);
    int32_t located = 0, fetched = 0;  // steps
    while (located < num_stages_ && ahead.Next()) Locate(ahead, located++);
    __syncthreads();
    for (int i = 0; i < num_stages_ - 1; ++i) {
      if (fetched < located) Fetch(fetched++, i);
      CommitCopies();
    }
    int32_t stage = 0, last = num_stages_ - 1;  // of this step, and of the step before
    for (int32_t step = 0; current.Next(); ++step) {
      if (num_stages_ == kMaxStages) {
        WaitCopies<kMaxStages - 2>();
      } else {
        WaitCopies<0>();
      }
      __syncthreads();
      if (fetched < located) Fetch(fetched++, last);
      CommitCopies();
      if (located == step + num_stages_ && ahead.Next()) Locate(ahead, located++);
      Compute(current, stage, step);
      last = stage;
      stage = stage + 1 == num_stages_ ? 0 : stage + 1;
    }
    WaitCopies<0>();
    Finish();
    if (item.partial >= 0) MergeWhereLast<kHeadDim>(params_, item, flags_);
  }

 private:
  __device__ bool HasSlopes() const { return kShaped && params_.alibi_slopes != nullptr; }
  __device__ bool HasOwnPages() const { return kShaped && params_.head_pages != nullptr; }
  __device__ const int32_t* PageTable() const {
    if (!HasOwnPages()) return PlanPart<int32_t>(params_.plan, page_table_);
    const int32_t table = item_->sequence * params_.page.num_kv_heads + kv_head_;
    return params_.head_pages + params_.head_pages[table];
  }

  __device__ __forceinline__ void Begin(const WorkItem& item) {
    item_ = &item;
    kv_head_ = item.kv_head;
    sequence_ = PlanPart<PlanSequence>(params_.plan, params_.plan->sequences) + item.sequence;
    page_table_ = sequence_->page_table;
    num_queries_ = (item.token_end - item.token_begin) * params_.group;
    const ItemRow* rows = RowsOf(params_.plan, item);
    const int32_t first_token = sequence_->query_begin + item.token_begin;
    const Q* q = static_cast<const Q*>(item.at_sinks ? params_.q_at_sinks : params_.q);
    for (int32_t i = threadIdx.x; i < S::kQueries * kQueryVectors; i += kThreads) {
      const int32_t query = i / kQueryVectors, vector = i % kQueryVectors;
      int32_t token = first_token + query / params_.group;
      if (rows != nullptr && query < num_queries_) token = rows[query / params_.group].row;
      const int32_t head = item.kv_head * params_.group + query % params_.group;
      const Q* from = query < num_queries_ ? q + token * params_.q_row_stride +
                                                 static_cast<int64_t>(head) * kHeadDim + vector * 8
                                           : q;
      CopyAsync(queries_ + query * S::kStride + vector * 8, from, query < num_queries_ ? 16 : 0);
    }
    for (int i = 0; i < 2; ++i) {
      const int32_t query = query_warp_ * 16 + lane_ / 4 + 8 * i;
      token_[i] = item.token_begin + query / params_.group;
      exists_[i] = query < num_queries_;
      m_[i] = -INFINITY;
      l_[i] = 0;
      slope_[i] = 0;
      query_position_[i] = 0;
      if (HasSlopes() && exists_[i]) {
        slope_[i] = params_.alibi_slopes[item.kv_head * params_.group + query % params_.group];
        const PlanSequence* own = sequence_;
        int32_t token = token_[i];
        if (rows != nullptr) {
          const ItemRow& row = rows[query / params_.group];
          own = PlanPart<PlanSequence>(params_.plan, params_.plan->sequences) + row.sequence;
          token = row.token;
        }
        const int32_t key = own->kv_len - own->num_query_tokens + token;
        query_position_[i] = static_cast<float>(KeyPosition(params_.plan, *own, key));
      }
    }
    for (auto& tile : sums_) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    if constexpr (kFloat8) {
      const int32_t heads = params_.page.num_kv_heads;
      score_factor_ = ScaleOf(params_.float8, heads, 0, item.kv_head) * kHalvesFactor;
    }
  }

  /*! \brief Finds the addresses of a step's keys: element offsets into the pages, -1 where there is
   * nothing to read. */
  __device__ __forceinline__ void Locate(const TileCursor<S::kKeys>& cursor, int32_t step) {
    const int32_t c = threadIdx.x, at = step % S::kRing * S::kKeys + c;
    if (c >= S::kKeys) return;
    int64_t offset = -1;
    const int32_t key = cursor.first_key + c;
    if (cursor.any >> c & 1) {
      const int32_t page = PageTable()[key / params_.page.page_size];
      if (page >= 0) {
        const int32_t slot = page * params_.page.page_size + key % params_.page.page_size;
        offset = SlotOffset(params_.page, slot, 0, kv_head_);
      }
      if (HasSlopes()) {
        positions_[at] = static_cast<float>(KeyPosition(params_.plan, *sequence_, key));
      }
    }
    offsets_[at] = offset;
  }

  /*! \brief Starts the copies of a step's K and V; hidden keys become zeros. */
  __device__ __forceinline__ void Fetch(int32_t step, int32_t stage) {
    const int64_t* offsets = offsets_ + step % S::kRing * S::kKeys;
    const T* pages = static_cast<const T*>(params_.pages);
    const int64_t to_value =
        static_cast<int64_t>(params_.page.num_kv_heads) * params_.page.page_size * kHeadDim;
    T* k = Keys(stage);
    T* v = Values(stage);
    const int32_t vector = threadIdx.x % kCopyThreads, first = threadIdx.x / kCopyThreads;
    if (kVectors < kCopyThreads && vector >= kVectors) return;
    constexpr int kStep = kThreads / kCopyThreads;  // keys that the block copies at a time
#pragma unroll
    for (int i = 0; i < S::kKeys / kStep; ++i) {
      const int32_t c = first + i * kStep;
      const int64_t offset = offsets[c];
      const T* from = offset < 0 ? pages : pages + offset + vector * kSize;
      const int bytes = offset < 0 ? 0 : 16;
      CopyAsync(k + c * S::kPageStride + vector * kSize, from, bytes);
      CopyAsync(v + c * S::kPageStride + vector * kSize, offset < 0 ? pages : from + to_value,
                bytes);
    }
  }

  __device__ __forceinline__ void Compute(const TileCursor<S::kKeys>& cursor, int32_t stage,
                                          int32_t step) {
    if (query_warp_ * 16 >= num_queries_) return;  // the same for the whole warp
    uint64_t words[2] = {~uint64_t{0}, ~uint64_t{0}};
    if (cursor.words >= 0) {
      const auto* from = PlanPart<uint64_t>(params_.plan, params_.plan->words) + cursor.words;
      for (int i = 0; i < 2; ++i) {
        if (exists_[i]) words[i] = from[token_[i] % kBlockQueries];
      }
    }
    float scores[S::kWarpKeys / 8][4];
    for (auto& tile : scores) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    Score(stage, scores);
    Scale(step, scores);
    // Queries that do not exist see all: nothing is written.
    if (!cursor.ShowsAll()) Hide({cursor.Visible(words[0]), cursor.Visible(words[1])}, scores);
    if (HasOwnPages()) HideOtherPages(step, scores);
    Soften(scores);
    Weigh(stage, scores);
  }

  __device__ __forceinline__ void Score(int32_t stage, float (&scores)[S::kWarpKeys / 8][4]) {
    const T* k = Keys(stage) + key_warp_ * S::kWarpKeys * S::kPageStride;
    if constexpr (kFloat8) {
      ScoreFloat8<kHeadDim, S::kStride, S::kPageStride>(queries_ + query_warp_ * 16 * S::kStride, k,
                                                        lane_, scores);
    } else {
      ScoreHalves(k, scores);
    }
  }

  __device__ __forceinline__ void ScoreHalves(const T* k, float (&scores)[S::kWarpKeys / 8][4]) {
    const int32_t tile = lane_ / 8, within = lane_ % 8;
    const T* q_at =
        queries_ + (query_warp_ * 16 + tile % 2 * 8 + within) * S::kStride + tile / 2 * 8;
    const T* k_at = k + (tile / 2 * 8 + within) * S::kStride + tile % 2 * 8;
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 16) {
      uint32_t a[4], b[4];
      LoadTiles(a, q_at + d);
#pragma unroll
      for (int n = 0; n < S::kWarpKeys / 8; n += 2) {
        LoadTiles(b, k_at + n * 8 * S::kStride + d);
        MultiplyAdd(T{}, scores[n], a, b[0], b[1]);
        MultiplyAdd(T{}, scores[n + 1], a, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void Scale(int32_t step, float (&scores)[S::kWarpKeys / 8][4]) {
    const float sm_scale = kFloat8 ? params_.sm_scale * score_factor_ : params_.sm_scale;
    const float scale = sm_scale * kLog2E;
    const float* positions = positions_ + step % S::kRing * S::kKeys;
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& score = scores[n][j];
        if constexpr (kShaped) {
          const float distance =
              HasSlopes() ? positions[WarpKey(n) + j % 2] - query_position_[j / 2] : 0;
          score = Shape(score, sm_scale, params_.soft_cap, slope_[j / 2], distance);
        } else {
          score *= scale;
        }
      }
    }
  }

  struct Pair {
    uint64_t of[2];
  };
  /*! \brief Scores of keys that a query does not see become -inf. */
  __device__ __forceinline__ void Hide(Pair visible, float (&scores)[S::kWarpKeys / 8][4]) {
    constexpr uint64_t kAll = ~uint64_t{0} >> (64 - S::kKeys);
    if (__all_sync(0xFFFFFFFFu, visible.of[0] == kAll && visible.of[1] == kAll)) return;
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if ((visible.of[j / 2] >> (WarpKey(n) + j % 2) & 1) == 0) scores[n][j] = -INFINITY;
      }
    }
  }

  /*! \brief Scores of keys that this head's page table leaves out become -inf. */
  __device__ __forceinline__ void HideOtherPages(int32_t step,
                                                 float (&scores)[S::kWarpKeys / 8][4]) {
    const int64_t* offsets = offsets_ + step % S::kRing * S::kKeys;
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (offsets[WarpKey(n) + j % 2] < 0) scores[n][j] = -INFINITY;
      }
    }
  }

  /*! \brief Turns scores into weights p, and rescales m, l and the sums to the new maximum. */
  __device__ __forceinline__ void Soften(float (&scores)[S::kWarpKeys / 8][4]) {
    float largest[2] = {m_[0], m_[1]};
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) largest[j / 2] = fmaxf(largest[j / 2], scores[n][j]);
    }
    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xFFFFFFFFu, largest[i], 1));
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xFFFFFFFFu, largest[i], 2));
      shrink[i] = Weight(m_[i], largest[i]);
      m_[i] = largest[i];
      l_[i] *= shrink[i];
    }
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[n][j] = Weight(scores[n][j], m_[j / 2]);
        l_[j / 2] += scores[n][j];
      }
    }
#pragma unroll
    for (auto& tile : sums_) {
      for (int j = 0; j < 4; ++j) tile[j] *= shrink[j / 2];
    }
  }

  /*! \brief sums += p v. The registers of the scores have the layout of a left factor. */
  __device__ __forceinline__ void Weigh(int32_t stage, const float (&p)[S::kWarpKeys / 8][4]) {
    const T* v = Values(stage) + key_warp_ * S::kWarpKeys * S::kPageStride;
    if constexpr (kFloat8) {
      WeighFloat8<kHeadDim, S::kPageStride>(v, lane_, p, sums_);
    } else {
      WeighHalves(v, p);
    }
  }

  __device__ __forceinline__ void WeighHalves(const T* v, const float (&p)[S::kWarpKeys / 8][4]) {
    const int32_t tile = lane_ / 8, within = lane_ % 8;
    const T* v_at = v + (tile % 2 * 8 + within) * S::kStride + tile / 2 * 8;
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; n += 2) {
      const uint32_t a[4] = {Pack<T>(p[n][0], p[n][1]), Pack<T>(p[n][2], p[n][3]),
                             Pack<T>(p[n + 1][0], p[n + 1][1]), Pack<T>(p[n + 1][2], p[n + 1][3])};
#pragma unroll
      for (int d = 0; d < kHeadDim / 8; d += 2) {
        uint32_t b[4];
        LoadTilesTransposed(b, v_at + n * 8 * S::kStride + d * 8);
        MultiplyAdd(T{}, sums_[d], a, b[0], b[1]);
        MultiplyAdd(T{}, sums_[d + 1], a, b[2], b[3]);
      }
    }
  }

  /*! \brief Writes the outputs of the queries, or their partial results. */
  __device__ __forceinline__ void Finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      l_[i] += __shfl_xor_sync(0xFFFFFFFFu, l_[i], 1);
      l_[i] += __shfl_xor_sync(0xFFFFFFFFu, l_[i], 2);
    }
    if constexpr (kFloat8) {
      const int32_t heads = params_.page.num_kv_heads;
      OrderFloat8(ScaleOf(params_.float8, heads, 1, kv_head_) * kHalvesFactor, sums_);
    }
    if constexpr (S::kKeyWarps == 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (exists_[i]) WriteOwnQuery(i);
      }
      __syncthreads();  // before the next item's queries are loaded
      return;
    }
    __syncthreads();
    auto* sums = reinterpret_cast<float*>(stages_);     // [key warps, queries, kSumStride]
    auto* scale = reinterpret_cast<float2*>(queries_);  // [key warps, queries]
    const int32_t first = key_warp_ * S::kQueries + query_warp_ * 16;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t query = first + lane_ / 4 + 8 * i;
      if (lane_ % 4 == 0) scale[query] = float2{m_[i], l_[i]};
#pragma unroll
      for (int d = 0; d < kHeadDim / 8; ++d) {
        *reinterpret_cast<float2*>(sums + query * S::kSumStride + Element(d)) =
            float2{sums_[d][2 * i], sums_[d][2 * i + 1]};
      }
    }
    __syncthreads();
    for (int32_t query = warp_; query < num_queries_; query += kWarps)
      WriteQuery(query, sums, scale);
    __syncthreads();  // before the next item's queries are loaded
  }

  /*! \brief A query whose keys this warp had all: from the registers of four lanes. */
  __device__ __forceinline__ void WriteOwnQuery(int i) {
    const int32_t query = query_warp_ * 16 + lane_ / 4 + 8 * i;
    if (item_->partial >= 0) {
      const int32_t partial = PartialOf(params_.plan, *item_, params_.group, query);
      float* sums = params_.partials.sums + static_cast<int64_t>(partial) * kHeadDim;
#pragma unroll
      for (int d = 0; d < kHeadDim / 8; ++d) {
        *reinterpret_cast<float2*>(sums + Element(d)) =
            float2{sums_[d][2 * i], sums_[d][2 * i + 1]};
      }
      if (lane_ % 4 == 0) params_.partials.scale[partial] = float2{m_[i], l_[i]};
      return;
    }
    const int64_t token = sequence_->query_begin + token_[i];
    const int32_t head = kv_head_ * params_.group + query % params_.group;
    const QueryResult result(m_[i], l_[i], params_.sinks, head);
    const int64_t out = token * params_.out.row_stride + static_cast<int64_t>(head) * kHeadDim;
#pragma unroll
    for (int d = 0; d < kHeadDim / 8; ++d) {
      StorePair(sums_[d][2 * i] * result.factor, sums_[d][2 * i + 1] * result.factor, params_.out,
                out + Element(d));
    }
    if (lane_ % 4 == 0 && params_.lse != nullptr) {
      params_.lse[token * params_.num_qo_heads + head] = result.lse;
    }
  }

  /*! \brief One warp sums a query's results over the key warps, into the output or the partials. */
  __device__ __forceinline__ void WriteQuery(int32_t query, const float* sums,
                                             const float2* scale) {
    float m = -INFINITY, l = 0;
    for (int w = 0; w < S::kKeyWarps; ++w) m = fmaxf(m, scale[w * S::kQueries + query].x);
    float weights[S::kKeyWarps];
    for (int w = 0; w < S::kKeyWarps; ++w) {
      weights[w] = Weight(scale[w * S::kQueries + query].x, m);
      l += scale[w * S::kQueries + query].y * weights[w];
    }
    const int64_t partial =
        item_->partial < 0 ? -1 : PartialOf(params_.plan, *item_, params_.group, query);
    const int64_t token = sequence_->query_begin + item_->token_begin + query / params_.group;
    const int32_t head = kv_head_ * params_.group + query % params_.group;
    const QueryResult result(m, l, params_.sinks, head);
    for (int32_t d = lane_; d < kHeadDim; d += 32) {
      float sum = 0;
      for (int w = 0; w < S::kKeyWarps; ++w) {
        sum += sums[(w * S::kQueries + query) * S::kSumStride + d] * weights[w];
      }
      if (item_->partial >= 0) {
        params_.partials.sums[partial * kHeadDim + d] = sum;
      } else {
        StoreElement(sum * result.factor, params_.out.data, params_.out.dtype,
                     token * params_.out.row_stride + static_cast<int64_t>(head) * kHeadDim + d);
      }
    }
    if (lane_ != 0) return;
    if (item_->partial >= 0) {
      params_.partials.scale[partial] = float2{m, l};
    } else if (params_.lse != nullptr) {
      params_.lse[token * params_.num_qo_heads + head] = result.lse;
    }
  }

  __device__ T* Keys(int32_t stage) { return stages_ + stage * 2 * S::kKeys * S::kPageStride; }
  __device__ T* Values(int32_t stage) { return Keys(stage) + S::kKeys * S::kPageStride; }
  /*! \brief The first of the two adjacent elements that this thread has in tile d of the sums. */
  __device__ int32_t Element(int d) const {
    return kFloat8 ? d / 2 * 16 + lane_ % 4 * 4 + d % 2 * 2 : d * 8 + lane_ % 4 * 2;
  }
  /*! \brief The first of this thread's two adjacent keys in tile n of its warp. */
  __device__ int32_t WarpKey(int n) const {
    return key_warp_ * S::kWarpKeys + n * 8 + lane_ % 4 * 2;
  }

  const AttentionParams& params_;
  const int32_t num_stages_;
  uint32_t* flags_;
  Q* queries_;
  int64_t* offsets_;  // [kRing, kKeys]
  float* positions_;  // [kRing, kKeys]
  T* stages_;
  const int32_t warp_, lane_, query_warp_, key_warp_;
  const WorkItem* item_;  // in the plan: what only the end needs is not kept in registers
  const PlanSequence* sequence_;
  int32_t kv_head_, page_table_;
  int32_t num_queries_;
  // Of queries lane / 4 and lane / 4 + 8 of the warp.
  int32_t token_[2];
  bool exists_[2];
  float m_[2], l_[2], slope_[2], query_position_[2];
  float sums_[kHeadDim / 8][4];
  float score_factor_;  // with kFloat8 only
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_ATTENTION_ATTENTION_BLOCK_CUH_
