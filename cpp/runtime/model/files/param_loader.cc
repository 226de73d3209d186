#include "runtime/model/files/param_loader.h"

#include <tvm/ffi/function.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <unordered_map>
#include <utility>

#include "kvctl/error.h"
#include "runtime/model/files/shard_check.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

/*! \brief A parameter to load: what it must be, and where it is kept. */
struct Wanted {
  const ParamSpec* spec;
  size_t position;
  ffi::Function pack;
  const ParamSplit* split = nullptr;  // null: all of it
  std::vector<ffi::Function> steps;   // of MLC-LLM's way to a share
};

bool SameDType(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

bool ShapeFits(const std::vector<int64_t>& shape, const std::vector<int64_t>& expected) {
  if (shape.size() != expected.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (expected[i] >= 0 && expected[i] != shape[i]) return false;
  }
  return true;
}

std::unordered_map<std::string, Wanted> CheckSpecs(const ModelFiles& files,
                                                   const std::vector<ParamSpec>& specs,
                                                   const WorkerShare& worker) {
  std::unordered_map<std::string, const ParamRecord*> records;
  for (const ParamShard& shard : files.shards) {
    for (const ParamRecord& record : shard.records) records[record.name] = &record;
  }
  std::unordered_map<std::string, Wanted> wanted;
  for (size_t i = 0; i < specs.size(); ++i) {
    const ParamSpec& spec = specs[i];
    const bool cut = worker.count > 1 && !spec.steps.empty();
    // MLC-LLM can save the shares, too.
    const std::string share = spec.name + "_shard-" + std::to_string(worker.index);
    const bool presharded = cut && records.count(share) > 0;
    const std::string& name = presharded ? share : spec.name;
    const std::vector<int64_t>& shape =
        cut && !presharded ? spec.steps.front().in_shape : spec.shape;
    auto found = records.find(name);
    if (found == records.end()) {
      Throw(ErrorKind::kValue, files.index, " lacks parameter ", spec.name, ", which ",
            files.library, " takes: do the two belong together?");
    }
    const ParamRecord& record = *found->second;
    if (!SameDType(record.dtype, spec.dtype) || !ShapeFits(record.shape, shape)) {
      Throw(ErrorKind::kValue, "parameter ", spec.name, " is ",
            DescribeTensor(record.dtype, record.shape), " in ", files.index, ", but ",
            files.library, " takes ", DescribeTensor(spec.dtype, shape));
    }
    Wanted entry{&spec, i, nullptr, nullptr, {}};
    auto split = worker.splits.find(spec.name);
    if (split != worker.splits.end()) {
      CheckSplit(split->second, record, files.library);
      entry.split = &split->second;
    }
    for (const ShardStep& step : cut && !presharded ? spec.steps : std::vector<ShardStep>()) {
      entry.steps.push_back(worker.find(step.function));
    }
    if (!spec.pack.empty()) {
      auto pack = ffi::Function::GetGlobal(spec.pack);
      if (!pack.has_value()) {
        Throw(ErrorKind::kRuntime, files.library, " wants parameter ", spec.name, " packed by '",
              spec.pack, "', which is not registered");
      }
      entry.pack = *pack;
    }
    if (!wanted.emplace(name, std::move(entry)).second) {
      Throw(ErrorKind::kValue, files.library, " names parameter ", spec.name, " twice");
    }
  }
  return wanted;
}

void ReadBytes(std::ifstream* file, const ParamShard& shard, int64_t nbytes, void* target) {
  if (!file->read(static_cast<char*>(target), nbytes)) {
    Throw(ErrorKind::kRuntime, "cannot read ", nbytes, " bytes from ", shard.path);
  }
}

/*! \brief Reads count bfloat16 numbers as float32. */
void ReadWidened(std::ifstream* file, const ParamShard& shard, int64_t count, void* target) {
  constexpr int64_t kBlock = 1 << 16;
  std::vector<uint16_t> narrow(static_cast<size_t>(std::min(count, kBlock)));
  auto* wide = static_cast<uint32_t*>(target);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = std::min(kBlock, count - begin);
    ReadBytes(file, shard, size * int64_t{sizeof(uint16_t)}, narrow.data());
    for (int64_t i = 0; i < size; ++i) wide[begin + i] = uint32_t{narrow[i]} << 16;
  }
}

Tensor ReadTensor(std::ifstream* file, const ParamShard& shard, const ParamRecord& record,
                  DLDevice device) {
  Tensor host = Tensor::Empty(ffi::Shape(record.shape.begin(), record.shape.end()), record.dtype,
                              {kDLCPU, 0});
  void* data = static_cast<char*>(host->data) + host->byte_offset;
  file->seekg(record.offset);
  if (record.widened) {
    ReadWidened(file, shard, record.nbytes / 2, data);
  } else {
    ReadBytes(file, shard, record.nbytes, data);
  }
  return device.device_type == kDLCPU ? host : host.CopyTo(device);
}

/*! \brief This worker's share of a parameter that MLC-LLM's functions cut into all shares. */
Tensor CutByModel(Tensor tensor, const Wanted& wanted, int64_t worker) {
  for (size_t i = 0; i < wanted.steps.size(); ++i) {
    const ShardStep& step = wanted.spec->steps[i];
    Tensor out = Tensor::Empty(ffi::Shape(step.out_shape.begin(), step.out_shape.end()),
                               step.out_dtype, tensor->device);
    wanted.steps[i](tensor, out);
    tensor = std::move(out);
  }
  const ffi::Shape shape(tensor->shape + 1, tensor->shape + tensor->ndim);
  Tensor share = Tensor::Empty(shape, tensor->dtype, tensor->device);
  const uint64_t bytes = ffi::GetDataSize(*share.operator->());
  share.CopyFrom(tensor.CreateView(shape, tensor->dtype, static_cast<uint64_t>(worker) * bytes));
  return share;
}

std::vector<ShardStep> ReadSteps(const JsonObject& param, const std::string& document) {
  std::vector<ShardStep> steps;
  const auto found = FindMember<ffi::json::Array>(param, "preprocs");
  for (const ffi::Any& item : found.value_or(ffi::json::Array())) {
    auto json = item.try_cast<JsonObject>();
    if (!json) Throw(ErrorKind::kValue, document, ": an entry of preprocs is not an object");
    ShardStep step;
    step.function = GetMember<ffi::String>(*json, "func_name", document);
    for (const char* key : {"in_shape", "out_shape"}) {
      auto& shape = key[0] == 'i' ? step.in_shape : step.out_shape;
      for (const ffi::Any& extent : GetMember<ffi::json::Array>(*json, key, document)) {
        shape.push_back(extent.try_cast<int64_t>().value_or(-1));
      }
    }
    step.out_dtype = ffi::StringToDLDataType(GetMember<ffi::String>(*json, "out_dtype", document));
    TensorBytes(step.out_dtype, step.out_shape, document + ", " + step.function);
    steps.push_back(std::move(step));
  }
  return steps;
}

/*! \throws Error kValue unless MLC-LLM's functions give the share that a library takes. */
void CheckSteps(const ParamSpec& spec, int64_t workers, const std::string& library) {
  if (spec.steps.empty()) return;
  const std::vector<int64_t>& out = spec.steps.back().out_shape;
  const bool splits = !out.empty() && out[0] == workers;
  if (!splits || !ShapeFits({out.begin() + 1, out.end()}, spec.shape)) {
    Throw(ErrorKind::kValue, library, " cuts parameter ", spec.name, " into ",
          ffi::Shape(out.begin(), out.end()), " for ", workers, " workers that take ",
          DescribeTensor(spec.dtype, spec.shape));
  }
}

}  // namespace

std::vector<ParamSpec> ReadParamSpecs(const JsonObject& metadata, const std::string& library) {
  const std::string document = "_metadata of " + library;
  const JsonObject ours = FindMember<JsonObject>(metadata, "kvctl").value_or(JsonObject());
  const JsonObject packed = FindMember<JsonObject>(ours, "packed").value_or(JsonObject());
  std::vector<ParamSpec> specs;
  for (const ffi::Any& item : GetMember<ffi::json::Array>(metadata, "params", document)) {
    auto json = item.try_cast<JsonObject>();
    if (!json) Throw(ErrorKind::kValue, document, ": a parameter is not an object");
    ParamSpec spec;
    spec.name = GetMember<ffi::String>(*json, "name", document);
    for (const ffi::Any& extent : GetMember<ffi::json::Array>(*json, "shape", document)) {
      spec.shape.push_back(extent.try_cast<int64_t>().value_or(-1));
    }
    spec.dtype = ffi::StringToDLDataType(GetMember<ffi::String>(*json, "dtype", document));
    spec.pack = FindMember<ffi::String>(packed, spec.name).value_or("");
    spec.steps = ReadSteps(*json, document);
    specs.push_back(std::move(spec));
  }
  return specs;
}

ffi::Array<Tensor> LoadParams(const ModelFiles& files, const std::vector<ParamSpec>& specs,
                              DLDevice device, const WorkerShare& worker,
                              const std::function<void(int64_t, int64_t)>& progress) {
  for (const ParamSpec& spec : specs) {
    if (worker.count > 1) CheckSteps(spec, worker.count, files.library);
  }
  const std::unordered_map<std::string, Wanted> wanted = CheckSpecs(files, specs, worker);
  const auto bytes = [](const Wanted& one, const ParamRecord& record) {
    return one.split == nullptr ? record.nbytes : ShareBytes(*one.split, record);
  };
  int64_t total = 0;
  for (const ParamShard& shard : files.shards) {
    for (const ParamRecord& record : shard.records) {
      auto found = wanted.find(record.name);
      if (found != wanted.end()) total += bytes(found->second, record);
    }
  }
  ShardCheck check(files.shards, worker.index, worker.count);
  std::vector<Tensor> loaded(specs.size());
  int64_t done = 0;
  for (const ParamShard& shard : files.shards) {
    std::ifstream file(shard.path, std::ios::binary);
    std::optional<MappedFile> mapped;
    for (const ParamRecord& record : shard.records) {
      auto found = wanted.find(record.name);
      if (found == wanted.end()) continue;
      const Wanted& one = found->second;
      Tensor tensor;
      if (one.split != nullptr) {
        if (!mapped) mapped.emplace(shard.path, shard.nbytes);
        tensor = ReadShare(mapped->data() + record.offset, record, *one.split);
        if (device.device_type != kDLCPU) tensor = tensor.CopyTo(device);
      } else {
        tensor = ReadTensor(&file, shard, record, device);
      }
      if (!one.steps.empty()) tensor = CutByModel(std::move(tensor), one, worker.index);
      if (one.pack != nullptr) tensor = one.pack(tensor).cast<Tensor>();
      loaded[one.position] = std::move(tensor);
      done += bytes(one, record);
      if (progress) progress(done, total);
    }
  }
  check.Finish();
  return ffi::Array<Tensor>(loaded.begin(), loaded.end());
}

}  // namespace kvctl
