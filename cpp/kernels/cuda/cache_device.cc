#include "kernels/cuda/cache_device.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/attention/attention.cuh"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/kv_copy/append.cuh"
#include "kernels/cuda/kv_copy/slots.cuh"
#include "kernels/cuda/resident/resident_plan.h"
#include "kvctl/error.h"

namespace kvctl::cuda {
namespace {

cudaStream_t Stream(void* stream) { return static_cast<cudaStream_t>(stream); }

HeadRows ToHeads(const KVRows& rows) { return {rows.data, rows.dtype, rows.row_stride}; }

bool IsCapturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  Check(cudaStreamIsCapturing(Stream(stream), &status), "querying the capture status");
  return status != cudaStreamCaptureStatusNone;
}

int32_t Attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  Check(cudaDeviceGetAttribute(&value, attribute, device), "querying the device");
  return value;
}

class Cache final : public CudaCache {
 public:
  /*! \brief On the config's device, which is current. */
  explicit Cache(const CudaCacheConfig& config)
      : config_(config),
        resident_(MakePlanShape(config, &occupancy_), ArenaBytes(config), NumWords(config)) {
    layers_.Reserve(config.pages.size() * sizeof(void*));
    Check(cudaMemcpyAsync(layers_.As<void>(), config.pages.data(),
                          config.pages.size() * sizeof(void*), cudaMemcpyHostToDevice, nullptr),
          "copying to the device");
    Check(cudaStreamSynchronize(nullptr), "copying to the device");
    const PlanShape& shape = plan().shape();
    partial_sums_.Reserve(sizeof(float) * shape.max_partial_queries * config.page.head_dim);
    partial_scale_.Reserve(2 * sizeof(float) * shape.max_partial_queries);
    // All that attention may need, and its kernels, before a capture begins.
    q_rows_.Reserve(int64_t{config.max_query_tokens} * config.num_qo_heads * config.page.head_dim *
                    DTypeSize(query_dtype_));
    if (!config.kv_scales.empty()) {
      kv_scales_.Reserve(config.kv_scales.size() * sizeof(float));
      Check(
          cudaMemcpyAsync(kv_scales_.As<void>(), config.kv_scales.data(),
                          config.kv_scales.size() * sizeof(float), cudaMemcpyHostToDevice, nullptr),
          "copying to the device");
      num_saturated_.Reserve(sizeof(unsigned long long));
      Check(cudaMemsetAsync(num_saturated_.As<void>(), 0, sizeof(unsigned long long), nullptr),
            "clearing a counter");
      Check(cudaStreamSynchronize(nullptr), "copying to the device");
    }
    Check(PrepareAppend(), "loading the kernels");
    *Misfit() = 0;
  }

  void BeginStep(const CudaStep& step, void* stream) final {
    const DeviceScope device(config_.device);
    if (IsCapturing(stream)) {
      Throw(ErrorKind::kRuntime, "a step cannot begin while its stream is captured: begin it ",
            "first, capture the attention calls, and replay them after each begin_forward");
    }
    if (*Misfit() != 0) {
      *Misfit() = 0;
      Throw(
          ErrorKind::kRuntime, "a recorded graph was replayed in a step of another number of new ",
          "tokens, or with more or fewer rows for each head, than the step that it was recorded ",
          "in, or in the first that sees renumbered sinks: it did not append or attend. Roll back ",
          "to before that step; ", "kvctl.cuda.StepGraph records again where that is needed");
    }
    resident_.LayOut(step, num_captured_ > forgotten_, Stream(stream));
    if (step.sinks != nullptr) ReserveForSinks();
    num_query_tokens_ = step.plan.num_query_tokens();
    num_pages_.clear();
    for (const SequencePlan& sequence : step.plan.sequences) {
      num_pages_.push_back((sequence.kv_len() + config_.page.page_size - 1) /
                           config_.page.page_size);
    }
    stream_ = stream;
    resident_.Send(step, Stream(stream));
  }

  void Append(int32_t layer, const KVRows& k, const KVRows& v, void* stream) final {
    const DeviceScope device(config_.device);
    CudaAttention rows{};
    rows.layer = layer;
    rows.q.dtype = query_dtype_;
    rows.k = k;
    rows.v = v;
    AppendRows(rows, nullptr, nullptr, stream);
  }

  void Attend(const CudaAttention& call, void* stream) final {
    const DeviceScope device(config_.device);
    const int64_t width = int64_t{config_.num_qo_heads} * config_.page.head_dim;
    if (call.of_one_step && IsCapturing(stream)) {
      Throw(ErrorKind::kRuntime,
            "a page selector or an observer is called at each attention call, and mass has a row ",
            "for each key of this step, so such calls cannot be captured in a graph");
    }
    KVRows q = call.q;
    void* q_out = call.select ? call.q_out : nullptr;
    const bool aligned = q.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(q.data) % 16 == 0;
    if (call.rotates || q.dtype != query_dtype_ || !aligned) {
      if (q_out == nullptr) q_out = q_rows_.As<void>();
    }
    if (q_out != nullptr) q = {q_out, query_dtype_, width};
    // Where the plan's own table rotates, a recorded call fits later steps with sinks too.
    const bool at_sinks = call.rotates || plan().header().has_sinks;
    void* q_at_sinks = at_sinks ? sink_q_rows_.As<void>() : nullptr;
    AppendRows(call, q_out, q_at_sinks, stream);
    AttentionParams params{};
    params.plan = resident_.header();
    params.layer = call.layer;
    params.q = q.data;
    params.q_row_stride = q.row_stride;
    params.q_at_sinks = q_at_sinks;
    params.num_qo_heads = config_.num_qo_heads;
    params.group = plan().shape().group;
    params.page = config_.page;
    params.pages = config_.pages[call.layer];
    params.out = ToHeads(call.out);
    params.sm_scale = call.sm_scale;
    params.soft_cap = call.soft_cap;
    params.alibi_slopes = call.alibi_slopes;
    params.sinks = call.sinks;
    params.lse = call.lse;
    params.float8 = Float8Of(call.layer);
    const bool reserved = sink_q_rows_.size() > 0;
    params.partials = {(reserved ? sink_partial_sums_ : partial_sums_).As<float>(),
                       (reserved ? sink_partial_scale_ : partial_scale_).As<float2>()};
    AttentionLaunch launch{occupancy_.plain, plan().item_shape(), plan().num_blocks(),
                           occupancy_.shapes[plan().item_shape()].stages, overlaps_};
    if (call.select) {
      params.head_pages = UploadPages(call.select(), stream);
      launch.plain |= plan().num_rows() > 0;  // it looks pages up for each query
    }
    num_captured_ += IsCapturing(stream);
    Check(Attention(params, launch, Stream(stream)), "attention");
    last_params_ = params;
    last_launch_ = launch;
  }

  void SumWeights(const CudaAttentionMass& mass, void* stream) final {
    const DeviceScope device(config_.device);
    Check(cudaMemsetAsync(mass.sums, 0, sizeof(float) * mass.num_cleared, Stream(stream)),
          "clearing sums");
    Check(cuda::SumWeights(last_params_, last_launch_,
                           {mass.sums, mass.num_heads, mass.last_queries}, Stream(stream)),
          "summing weights");
  }

  void ForgetGraphs() final {
    forgotten_ = num_captured_;
    ++generation_;
  }

  GraphState ReadGraphState() const final {
    return {num_query_tokens_, kItemQueries[plan().item_shape()], generation_, num_captured_,
            reinterpret_cast<uintptr_t>(stream_)};
  }

  UploadState CompareUploads(const StepPlan* step, void* stream) const final {
    const DeviceScope device(config_.device);
    return resident_.Compare(step, Stream(stream));
  }

  int64_t CountSaturated(void* stream) const final {
    const DeviceScope device(config_.device);
    unsigned long long count = 0;
    Check(cudaMemcpyAsync(&count, num_saturated_.As<void>(), sizeof(count), cudaMemcpyDeviceToHost,
                          Stream(stream)),
          "reading a counter");
    Check(cudaStreamSynchronize(Stream(stream)), "reading a counter");
    return static_cast<int64_t>(count);
  }

  void Move(const CopyPlan& moves, void* stream) final {
    const DeviceScope device(config_.device);
    pairs_.clear();
    const int32_t page_size = config_.page.page_size;
    for (const PageCopy& copy : moves.pages) {
      for (int32_t i = 0; i < page_size; ++i) {
        pairs_.push_back({copy.source * page_size + i, copy.target * page_size + i});
      }
    }
    const auto copies = static_cast<int32_t>(pairs_.size());
    for (const SlotMove& move : moves.slots) pairs_.push_back({move.source, move.target});
    if (pairs_.empty()) return;
    move_list_.Copy(pairs_.data(), pairs_.size() * sizeof(SlotPair), Stream(stream));
    Check(
        MoveSlots(config_.page, layers_.As<void*>(), config_.num_layers, move_list_.As<SlotPair>(),
                  copies, static_cast<int32_t>(pairs_.size()), Stream(stream)),
        "moving slots");
  }

  void ReadSlots(int32_t layer, const std::vector<int32_t>& slots, const KVRows& k, const KVRows& v,
                 void* stream) final {
    const DeviceScope device(config_.device);
    Check(cuda::ReadSlots(config_.page, config_.pages[layer], SlotList(slots, stream), slots.size(),
                          k, v, Float8Of(layer), Stream(stream)),
          "reading slots");
  }

  void WriteSlots(int32_t layer, const std::vector<int32_t>& slots, const KVRows& k,
                  const KVRows& v, void* stream) final {
    const DeviceScope device(config_.device);
    Check(cuda::WriteSlots(config_.page, config_.pages[layer], SlotList(slots, stream),
                           slots.size(), k, v, Float8Of(layer), Stream(stream)),
          "writing slots");
  }

  void RotateSlots(const std::vector<int32_t>& slots, const float* table, void* stream) final {
    const DeviceScope device(config_.device);
    const size_t table_bytes = sizeof(float) * slots.size() * config_.rotary_dim;
    std::vector<char> rotation(table_bytes + sizeof(int32_t) * slots.size());
    std::memcpy(rotation.data(), table, table_bytes);
    std::memcpy(rotation.data() + table_bytes, slots.data(), rotation.size() - table_bytes);
    rotations_.Copy(rotation.data(), rotation.size(), Stream(stream));
    Check(cuda::RotateSlots(config_.page, layers_.As<void*>(), config_.num_layers,
                            reinterpret_cast<int32_t*>(rotations_.As<char>() + table_bytes),
                            rotations_.As<float>(), static_cast<int32_t>(slots.size()),
                            config_.rotary_dim, num_saturated_.As<unsigned long long>(),
                            Stream(stream)),
          "rotating keys");
  }

  void PoisonSlots(int32_t layer, const std::vector<int32_t>& slots, void* stream) final {
    const DeviceScope device(config_.device);
    Check(cuda::PoisonSlots(config_.page, config_.pages[layer], SlotList(slots, stream),
                            slots.size(), Stream(stream)),
          "poisoning slots");
  }

 private:
  static PlanShape MakePlanShape(const CudaCacheConfig& config, AttentionOccupancy* occupancy) {
    const int32_t processors = Attribute(cudaDevAttrMultiProcessorCount, config.device);
    const int32_t shared = Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, config.device);
    Check(PrepareAttention(config.page, static_cast<size_t>(shared), occupancy),
          "loading the kernels");
    // Those that few attention calls need, so that their first launch may be captured too.
    Check(PreparePlain(config.page.dtype, nullptr), "loading the kernels");
    Check(PrepareWeights(config.page.dtype), "loading the kernels");
    PlanShape shape{};
    shape.num_layers = config.num_layers;
    shape.num_kv_heads = config.page.num_kv_heads;
    shape.group = config.num_qo_heads / config.page.num_kv_heads;
    shape.page_size = config.page.page_size;
    for (int i = 0; i < kNumItemShapes; ++i) {
      shape.num_blocks[i] = processors * std::max(1, occupancy->shapes[i].blocks);
      shape.max_partial_queries =
          std::max(shape.max_partial_queries, 2 * shape.num_blocks[i] * kItemQueries[i]);
    }
    shape.rotary_dim = config.rotary_dim;
    shape.shares = config.shares_prefixes;
    shape.least_shape = occupancy->least_shape;
    return shape;
  }

  // Large enough for most steps, so that graphs recorded early keep valid addresses.
  static size_t ArenaBytes(const CudaCacheConfig& config) {
    return (1 << 18) + 4 * size_t(config.num_pages) +
           size_t(config.max_query_tokens) * (16 + 4 * config.rotary_dim);
  }
  /*! \brief Page tables of many forks, and positions of all tokens. */
  static int64_t NumWords(const CudaCacheConfig& config) {
    constexpr int64_t kMost = 1 << 27;
    return std::min(kMost, (1 << 16) + int64_t{config.num_pages} * (8 + 2 * config.page.page_size));
  }

  volatile int32_t* Misfit() {
    return static_cast<volatile int32_t*>(misfit_.Reserve(sizeof(int32_t)));
  }
  Float8Scales Float8Of(int32_t layer) const {
    if (config_.kv_scales.empty()) return {nullptr, nullptr};
    return {kv_scales_.As<float>() + int64_t{layer} * 2 * config_.page.num_kv_heads,
            num_saturated_.As<unsigned long long>()};
  }
  const DevicePlanBuilder& plan() const { return resident_.plan(); }

  /*! \brief What steps with renumbered sinks need beside the others, from the first on. The
   * buffers of before stay where recorded graphs read them; those do not fit such steps. */
  void ReserveForSinks() {
    if (sink_q_rows_.size() > 0) return;
    const int64_t queries = int64_t{config_.max_query_tokens} * config_.num_qo_heads;
    const int64_t partials = plan().shape().max_partial_queries + 2 * queries;
    sink_partial_sums_.Reserve(sizeof(float) * partials * config_.page.head_dim);
    sink_partial_scale_.Reserve(2 * sizeof(float) * partials);
    sink_q_rows_.Reserve(queries * config_.page.head_dim * DTypeSize(query_dtype_));
    ++generation_;  // graphs are recorded again, with the new buffers
  }

  void AppendRows(const CudaAttention& call, void* q_out, void* q_at_sinks, void* stream) {
    AppendArgs args{};
    args.plan = resident_.header();
    args.num_query_tokens = num_query_tokens_;
    args.item_shape = plan().item_shape();
    args.q = ToHeads(call.q);
    args.k = ToHeads(call.k);
    args.v = ToHeads(call.v);
    args.num_qo_heads = config_.num_qo_heads;
    const int64_t width = int64_t{config_.num_qo_heads} * config_.page.head_dim;
    args.q_out = {q_out, query_dtype_, width};
    args.sink_q = call.rotates ? args.q : ToHeads(call.q_at_sinks);
    args.q_at_sinks = {q_at_sinks, query_dtype_, width};
    args.page = config_.page;
    args.pages = config_.pages[call.layer];
    args.float8 = Float8Of(call.layer);
    args.rotary_dim = call.rotates ? config_.rotary_dim : 0;
    args.misfit = const_cast<int32_t*>(Misfit());
    Check(cuda::Append(args, overlaps_, Stream(stream)), "writing K and V");
  }

  /*! \brief A page selector's answer as AttentionParams takes it. */
  const int32_t* UploadPages(const int32_t* const* tables, void* stream) {
    const int32_t heads = config_.page.num_kv_heads;
    selected_pages_.assign(num_pages_.size() * heads, 0);
    for (size_t i = 0; i < num_pages_.size() * heads; ++i) {
      if (i % heads > 0 && tables[i] == tables[i - 1]) {
        selected_pages_[i] = selected_pages_[i - 1];
        continue;
      }
      selected_pages_[i] = static_cast<int32_t>(selected_pages_.size());
      selected_pages_.insert(selected_pages_.end(), tables[i], tables[i] + num_pages_[i / heads]);
    }
    page_tables_.Copy(selected_pages_.data(), selected_pages_.size() * sizeof(int32_t),
                      Stream(stream));
    return page_tables_.As<int32_t>();
  }

  const int32_t* SlotList(const std::vector<int32_t>& slots, void* stream) {
    // The layers of a sequence share one list. Another stream would not wait for its copy.
    if (slots != uploaded_slots_ || stream != uploaded_on_) {
      uploaded_slots_.clear();
      slot_list_.Copy(slots.data(), slots.size() * sizeof(int32_t), Stream(stream));
      uploaded_slots_ = slots;
      uploaded_on_ = stream;
    }
    return slot_list_.As<int32_t>();
  }

  const CudaCacheConfig config_;
  const DType query_dtype_ = QueryDType(config_.page.dtype);
  const bool overlaps_ = Attribute(cudaDevAttrComputeCapabilityMajor, config_.device) >= 9;
  AttentionOccupancy occupancy_{};
  ResidentPlan resident_;
  // Attention calls that were captured, and how many of them are not replayed any more: graphs may
  // read the arena where it is if there are others.
  int64_t num_captured_ = 0, forgotten_ = 0;
  int64_t generation_ = 0;
  void* stream_ = nullptr;  // of the step
  PinnedBuffer misfit_;     // set by the device, see AppendArgs
  int32_t num_query_tokens_ = 0;
  std::vector<SlotPair> pairs_;
  std::vector<int32_t> uploaded_slots_;  // what slot_list_ holds
  void* uploaded_on_ = nullptr;          // the stream of its copy
  Upload move_list_, slot_list_, page_tables_, rotations_;
  std::vector<int32_t> num_pages_;       // of the step's sequences
  std::vector<int32_t> selected_pages_;  // what page_tables_ holds
  AttentionParams last_params_{};        // of the last attention call
  AttentionLaunch last_launch_{};
  DeviceBuffer layers_, q_rows_, partial_sums_, partial_scale_, kv_scales_, num_saturated_;
  DeviceBuffer sink_q_rows_, sink_partial_sums_, sink_partial_scale_;  // see ReserveForSinks
};

}  // namespace

CudaCache* CreateCache(const CudaCacheConfig& config) {
  if (config.num_qo_heads / config.page.num_kv_heads > kMaxItemQueries) {
    Throw(ErrorKind::kNotImplemented, "on CUDA devices at most ", kMaxItemQueries,
          " query heads may share a KV head, got ", config.num_qo_heads / config.page.num_kv_heads);
  }
  const DeviceScope device(config.device);
  return new Cache(config);
}

}  // namespace kvctl::cuda
