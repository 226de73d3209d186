// Checks, cutting the work into units, threads.
#include "kernels/attention.h"

#include <omp.h>

#include <algorithm>
#include <new>
#include <vector>

#include "core/mask_plan.h"
#include "kernels/cpu/attention_unit.h"
#include "kernels/cpu/isa.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr int32_t kTileRows = 32;        // query rows that share each load of a key or value
constexpr int32_t kUnitsPerThread = 4;   // so that threads finish together
constexpr int64_t kSmallWork = 1 << 19;  // products below which one thread is faster

void CheckArgs(const AttentionArgs& args) {
  if (args.head_dim < 8 || args.head_dim > 256 || args.head_dim % 8 != 0) {
    Throw(ErrorKind::kValue, "attention needs a head_dim that is a multiple of 8 in [8, 256], got ",
          args.head_dim);
  }
  if (args.num_kv_heads < 1 || args.num_qo_heads < 1 ||
      args.num_qo_heads % args.num_kv_heads != 0) {
    Throw(ErrorKind::kValue, "attention needs num_qo_heads to be a multiple of num_kv_heads, got ",
          args.num_qo_heads, " and ", args.num_kv_heads);
  }
  if (args.page_size < 1) {
    Throw(ErrorKind::kValue, "page_size must be positive, got ", args.page_size);
  }
}

const AttentionKernels& ChooseKernels(int32_t head_dim) {
  const Isa isa = CpuIsa();
  if (isa >= Isa::kAvx512 && head_dim % kAttentionAvx512.lanes == 0) return kAttentionAvx512;
  if (isa >= Isa::kAvx2) return kAttentionAvx2;
  return kAttentionBaseline;
}

/*! \brief Chunks that a block of a plan sees. */
int32_t CountChunks(const MaskPlan& plan, int32_t block) {
  int32_t count = 0;
  for (ChunkWalker walker(plan, block); walker.Next();) ++count;
  return count;
}

/*! \brief The work of one call, cut into pieces. */
class Schedule {
 public:
  Schedule(const AttentionArgs& args, int32_t num_threads)
      : args_(args), group_(args.num_qo_heads / args.num_kv_heads) {
    int32_t tokens = 1;  // a power of two, so that blocks of the mask are whole numbers of tiles
    while (2 * tokens * group_ <= kTileRows && 2 * tokens <= kBlockRows) tokens *= 2;
    shape_.group = group_;
    shape_.tile_tokens = tokens;
    int32_t whole = 0;
    for (int32_t s = 0; s < args.num_sequences; ++s) {
      whole += args.num_kv_heads * ((args.sequences[s].num_rows + kBlockRows - 1) / kBlockRows);
    }
    pieces_ = num_threads == 1 || whole == 0
                  ? 1
                  : std::max(1, (kUnitsPerThread * num_threads + whole - 1) / whole);
    // As many units for each thread, where that is near.
    if (whole % num_threads != 0 && pieces_ > 1) {
      pieces_ = (pieces_ + num_threads - 1) / num_threads * num_threads;
    }
    for (int32_t s = 0; s < args.num_sequences; ++s) {
      for (int32_t head = 0; head < args.num_kv_heads; ++head) CutSequence(s, head);
    }
  }

  /*! \brief A sequence's rows of which the chunks went to several units. */
  struct Merge {
    AttentionUnit unit;
    int32_t num_chunks;
  };

  const AttentionShape& shape() const { return shape_; }
  std::vector<AttentionUnit>& units() { return units_; }
  std::vector<Merge>& merges() { return merges_; }
  int64_t partial_floats() const { return partial_floats_; }
  int64_t work() const { return work_; }

 private:
  void CutSequence(int32_t s, int32_t head) {
    const MaskPlan& plan = args_.masks.plan(s, head);
    const int32_t num_rows = args_.sequences[s].num_rows;
    for (int32_t block = 0; block * kBlockRows < num_rows; ++block) {
      const int32_t begin = block * kBlockRows, tokens = std::min(kBlockRows, num_rows - begin);
      const int32_t tiles = (tokens + shape_.tile_tokens - 1) / shape_.tile_tokens;
      int32_t pending_spans = 0;
      for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
        const MaskSpan& span = plan.spans[i];
        pending_spans += span.chunk != MaskSpan::kByColumn;
        work_ += int64_t(span.end - span.begin) * tokens * group_ * args_.head_dim;
      }
      shape_.max_slots = std::max(shape_.max_slots, kChunkColumns / kTileColumns + pending_spans);
      const int32_t row_pieces = std::min(tiles, pieces_);
      const int32_t unit_tokens = (tiles + row_pieces - 1) / row_pieces * shape_.tile_tokens;
      shape_.unit_tokens = std::max(shape_.unit_tokens, std::min(unit_tokens, tokens));
      const int32_t chunk_pieces = (pieces_ + row_pieces - 1) / row_pieces;
      const int32_t chunks = chunk_pieces > 1 ? CountChunks(plan, block) : 0;
      for (int32_t first = 0; first < tokens; first += unit_tokens) {
        const int32_t end = std::min(first + unit_tokens, tokens);
        CutChunks({s, head, begin + first, begin + end, 0, INT32_MAX, nullptr}, chunks,
                  std::min(chunk_pieces, chunks));
      }
    }
  }

  void CutChunks(AttentionUnit unit, int32_t chunks, int32_t pieces) {
    if (pieces <= 1) {
      units_.push_back(unit);
      return;
    }
    // Offsets for now: the memory is reserved when all is known.
    unit.partials = reinterpret_cast<float*>(partial_floats_ * sizeof(float) + 1);
    merges_.push_back({unit, chunks});
    for (int32_t piece = 0; piece < pieces; ++piece) {
      unit.chunk_begin = static_cast<int32_t>(int64_t(chunks) * piece / pieces);
      unit.chunk_end = static_cast<int32_t>(int64_t(chunks) * (piece + 1) / pieces);
      units_.push_back(unit);
    }
    partial_floats_ +=
        chunks * PartialFloats((unit.token_end - unit.token_begin) * group_, args_.head_dim);
  }

  const AttentionArgs& args_;
  const int32_t group_;
  AttentionShape shape_{};
  int32_t pieces_ = 1;
  std::vector<AttentionUnit> units_;
  std::vector<Merge> merges_;
  int64_t partial_floats_ = 0;
  int64_t work_ = 0;
};

}  // namespace

AttentionWorkspace::AttentionWorkspace() = default;
AttentionWorkspace::~AttentionWorkspace() = default;

void AttentionWorkspace::Free::operator()(float* data) const {
  ::operator delete(data, std::align_val_t{64});
}

float* AttentionWorkspace::Reserve(int64_t size) {
  if (size > size_) {
    data_.reset();
    size_ = 0;
    data_.reset(static_cast<float*>(::operator new(size * sizeof(float), std::align_val_t{64})));
    size_ = size;
  }
  return data_.get();
}

void AttentionCpu(const AttentionArgs& args) {
  CheckArgs(args);
  const AttentionKernels& kernels = ChooseKernels(args.head_dim);
  const int32_t num_threads = omp_get_max_threads();
  Schedule schedule(args, num_threads);
  std::vector<AttentionUnit>& units = schedule.units();
  std::vector<Schedule::Merge>& merges = schedule.merges();
  if (units.empty()) return;

  const AttentionShape& shape = schedule.shape();
  const int64_t scratch_floats = (kernels.scratch(args, shape) + 15) / 16 * 16;
  AttentionWorkspace own;
  AttentionWorkspace* workspace = args.workspace != nullptr ? args.workspace : &own;
  float* memory = workspace->Reserve(scratch_floats * num_threads + schedule.partial_floats());
  float* partials = memory + scratch_floats * num_threads;
  const auto place = [&](AttentionUnit& unit) {
    if (unit.partials == nullptr) return;
    unit.partials = partials + (reinterpret_cast<uintptr_t>(unit.partials) - 1) / sizeof(float);
  };
  for (AttentionUnit& unit : units) place(unit);
  for (Schedule::Merge& merge : merges) place(merge.unit);

  const auto num_units = static_cast<int32_t>(units.size());
  const auto num_merges = static_cast<int32_t>(merges.size());
#pragma omp parallel num_threads(num_threads) if (num_units > 1 && schedule.work() > kSmallWork)
  {
    float* scratch = memory + scratch_floats * omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int32_t i = 0; i < num_units; ++i) kernels.attend(args, shape, units[i], scratch);
#pragma omp for schedule(dynamic, 1)
    for (int32_t i = 0; i < num_merges; ++i) {
      kernels.finish(args, shape, merges[i].unit, merges[i].num_chunks, scratch);
    }
  }
}

}  // namespace kvctl
