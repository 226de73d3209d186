#include "runtime/model/param_loader.h"

#include <tvm/ffi/function.h>

#include <algorithm>
#include <fstream>
#include <unordered_map>

#include "kvctl/error.h"
#include "runtime/model/shard_check.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

/*! \brief A parameter to load: what it must be, and where it is kept. */
struct Wanted {
  const ParamSpec* spec;
  size_t position;
  ffi::Function pack;
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
                                                   const std::vector<ParamSpec>& specs) {
  std::unordered_map<std::string, const ParamRecord*> records;
  for (const ParamShard& shard : files.shards) {
    for (const ParamRecord& record : shard.records) records[record.name] = &record;
  }
  std::unordered_map<std::string, Wanted> wanted;
  for (size_t i = 0; i < specs.size(); ++i) {
    const ParamSpec& spec = specs[i];
    auto found = records.find(spec.name);
    if (found == records.end()) {
      Throw(ErrorKind::kValue, files.index, " lacks parameter ", spec.name, ", which ",
            files.library, " takes: do the two belong together?");
    }
    const ParamRecord& record = *found->second;
    if (!SameDType(record.dtype, spec.dtype) || !ShapeFits(record.shape, spec.shape)) {
      Throw(ErrorKind::kValue, "parameter ", spec.name, " is ",
            DescribeTensor(record.dtype, record.shape), " in ", files.index, ", but ",
            files.library, " takes ", DescribeTensor(spec.dtype, spec.shape));
    }
    Wanted entry{&spec, i, nullptr};
    if (!spec.pack.empty()) {
      auto pack = ffi::Function::GetGlobal(spec.pack);
      if (!pack.has_value()) {
        Throw(ErrorKind::kRuntime, files.library, " wants parameter ", spec.name, " packed by '",
              spec.pack, "', which is not registered");
      }
      entry.pack = *pack;
    }
    if (!wanted.emplace(spec.name, std::move(entry)).second) {
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
    specs.push_back(std::move(spec));
  }
  return specs;
}

ffi::Array<Tensor> LoadParams(const ModelFiles& files, const std::vector<ParamSpec>& specs,
                              DLDevice device,
                              const std::function<void(int64_t, int64_t)>& progress) {
  const std::unordered_map<std::string, Wanted> wanted = CheckSpecs(files, specs);
  int64_t total = 0;
  for (const ParamShard& shard : files.shards) {
    for (const ParamRecord& record : shard.records) {
      if (wanted.count(record.name) > 0) total += record.nbytes;
    }
  }
  ShardCheck check(files.shards);
  std::vector<Tensor> loaded(specs.size());
  int64_t done = 0;
  for (const ParamShard& shard : files.shards) {
    std::ifstream file(shard.path, std::ios::binary);
    for (const ParamRecord& record : shard.records) {
      auto found = wanted.find(record.name);
      if (found == wanted.end()) continue;
      Tensor tensor = ReadTensor(&file, shard, record, device);
      if (found->second.pack != nullptr) tensor = found->second.pack(tensor).cast<Tensor>();
      loaded[found->second.position] = std::move(tensor);
      done += record.nbytes;
      if (progress) progress(done, total);
    }
  }
  check.Finish();
  return ffi::Array<Tensor>(loaded.begin(), loaded.end());
}

}  // namespace kvctl
