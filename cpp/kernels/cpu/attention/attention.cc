// Argument checks and threading of attention.
#include "kernels/attention.h"

#include <omp.h>

#include <algorithm>
#include <new>
#include <vector>

#include "core/mask/mask_plan.h"
#include "kernels/cpu/attention/attention_schedule.h"
#include "kernels/isa.h"
#include "kernels/team.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr int64_t kSmallWork = 1 << 18;  // below this many products one thread is faster

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

const AttentionKernels& ChooseKernels(const AttentionArgs& args) {
  const Isa isa = CpuIsa();
  if (args.kv_dtype == DType::kBFloat16 && args.head_dim % kAttentionAmx.head_dims == 0 &&
      CpuHasTiles()) {
    return kAttentionAmx;
  }
  if (isa >= Isa::kAvx512 && args.head_dim % kAttentionAvx512.head_dims == 0) {
    return kAttentionAvx512;
  }
  if (isa >= Isa::kAvx2) return kAttentionAvx2;
  return kAttentionBaseline;
}

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
  const AttentionKernels& kernels = ChooseKernels(args);
  const int32_t num_threads = omp_get_max_threads();
  AttentionSchedule schedule(args, num_threads);
  if (schedule.units().empty()) return;

  const AttentionShape& shape = schedule.shape();
  const int64_t scratch_floats = (kernels.scratch(args, shape) + 15) / 16 * 16;
  AttentionWorkspace local;
  AttentionWorkspace* workspace = args.workspace != nullptr ? args.workspace : &local;
  float* memory = workspace->Reserve(scratch_floats * num_threads + schedule.partial_floats());
  schedule.Place(memory + scratch_floats * num_threads);

  const auto num_units = static_cast<int32_t>(schedule.units().size());
  const auto num_merges = static_cast<int32_t>(schedule.merges().size());
#pragma omp parallel num_threads( \
        num_threads) if (UseTeam(num_units > 1 && schedule.work() > kSmallWork))
  {
    float* scratch = memory + scratch_floats * omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int32_t i = 0; i < num_units; ++i) {
      kernels.attend(args, shape, schedule.units()[i], scratch);
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (int32_t i = 0; i < num_merges; ++i) {
      const AttentionSchedule::Merge& merge = schedule.merges()[i];
      kernels.finish(args, shape, merge.unit, merge.num_chunks, scratch);
    }
  }
}

void AttentionMassCpu(const AttentionArgs& args, const AttentionMass& mass) {
  CheckArgs(args);
  if (args.lse == nullptr) Throw(ErrorKind::kValue, "the sums of weights need the lse of the call");
  if (mass.num_heads != args.num_kv_heads && mass.num_heads != args.num_qo_heads) {
    Throw(ErrorKind::kValue, "weights are summed for ", args.num_kv_heads, " KV heads or ",
          args.num_qo_heads, " query heads, not for ", mass.num_heads);
  }
  const AttentionKernels& kernels = ChooseKernels(args);
  const int32_t num_threads = omp_get_max_threads();
  AttentionShape shape = ShapeOf(args);
  // Every key belongs to one unit, so that its sum has one order.
  std::vector<AttentionUnit> units;
  std::vector<int64_t> first_keys;
  int64_t num_keys = 0, work = 0;
  for (int32_t s = 0; s < args.num_sequences; ++s) {
    const SequencePlan& sequence = args.sequences[s];
    const int32_t queries = mass.last_queries > 0
                                ? std::min(mass.last_queries, sequence.num_query_tokens)
                                : sequence.num_query_tokens;
    const int32_t chunks = (sequence.kv_len() + kChunkKeys - 1) / kChunkKeys;
    shape.unit_tokens = std::max(shape.unit_tokens, std::min(queries, kBlockQueries));
    work += int64_t{queries} * sequence.kv_len() * args.num_qo_heads * args.head_dim;
    const int32_t step = std::max(1, chunks / (2 * num_threads));
    for (int32_t head = 0; head < args.num_kv_heads; ++head) {
      for (int32_t chunk = 0; chunk < chunks; chunk += step) {
        units.push_back({s, head, 1, sequence.num_query_tokens - queries, sequence.num_query_tokens,
                         chunk, std::min(chunks, chunk + step), nullptr, nullptr});
        first_keys.push_back(num_keys);
      }
    }
    num_keys += sequence.kv_len();
  }
  const int64_t scratch_floats = (kernels.scratch(args, shape) + 15) / 16 * 16;
  AttentionWorkspace local;
  AttentionWorkspace* workspace = args.workspace != nullptr ? args.workspace : &local;
  float* memory = workspace->Reserve(scratch_floats * num_threads);
  const auto num_units = static_cast<int32_t>(units.size());
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(num_threads) if (UseTeam(num_units > 1 && work > kSmallWork))
  for (int32_t i = 0; i < num_units; ++i) {
    kernels.observe(args, shape, units[i], mass, mass.sums + first_keys[i] * mass.num_heads,
                    memory + scratch_floats * omp_get_thread_num());
  }
}

}  // namespace kvctl
