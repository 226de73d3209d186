#include "runtime/model/files/param_split.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "kvctl/error.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

std::vector<int64_t> Integers(const ffi::json::Array& array, const std::string& document) {
  std::vector<int64_t> values;
  for (const ffi::Any& one : array) {
    auto value = one.try_cast<int64_t>();
    if (!value) Throw(ErrorKind::kValue, document, ": tensor_parallel must hold integers");
    values.push_back(*value);
  }
  return values;
}

ffi::json::Array ArrayAt(const ffi::json::Array& array, int64_t index,
                         const std::string& document) {
  if (index < 0 || index >= static_cast<int64_t>(array.size())) {
    Throw(ErrorKind::kValue, document, ": tensor_parallel has ", array.size(),
          " workers, and this is worker ", index, " counted from 0");
  }
  auto found = array[index].try_cast<ffi::json::Array>();
  if (!found) Throw(ErrorKind::kValue, document, ": tensor_parallel must hold lists of ranges");
  return *found;
}

ParamSplit ReadSplit(const JsonObject& json, int64_t worker, const std::string& document) {
  ParamSplit split;
  split.axis = GetMember<int64_t>(json, "axis", document);
  split.local = Integers(GetMember<ffi::json::Array>(json, "local", document), document);
  split.minus_infinity =
      std::string(GetMember<ffi::String>(json, "fill", document)) == "minus_infinity";
  const auto ranges =
      ArrayAt(GetMember<ffi::json::Array>(json, "ranges", document), worker, document);
  for (size_t part = 0; part < split.local.size(); ++part) {
    const std::vector<int64_t> range =
        Integers(ArrayAt(ranges, static_cast<int64_t>(part), document), document);
    if (range.size() != 2 || range[0] < 0 || range[1] < range[0] ||
        range[1] - range[0] > split.local[part]) {
      Throw(ErrorKind::kValue, document, ": tensor_parallel has a part of ", split.local[part],
            " whose range is ", ffi::Shape(range.begin(), range.end()));
    }
    split.ranges.emplace_back(range[0], range[1]);
  }
  return split;
}

int64_t Product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
  return std::accumulate(shape.begin() + static_cast<std::ptrdiff_t>(begin),
                         shape.begin() + static_cast<std::ptrdiff_t>(end), int64_t{1},
                         [](int64_t a, int64_t b) { return a * b; });
}

/*! \brief Copies numbers as they stand in a file, bfloat16 ones as float32. */
void Copy(const char* from, int64_t count, const ParamRecord& record, char* to) {
  if (!record.widened) {
    std::memcpy(to, from, static_cast<size_t>(count * record.dtype.bits / 8));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t narrow;
    std::memcpy(&narrow, from + 2 * i, sizeof(narrow));
    const uint32_t wide = uint32_t{narrow} << 16;
    std::memcpy(to + 4 * i, &wide, sizeof(wide));
  }
}

}  // namespace

std::unordered_map<std::string, ParamSplit> ReadParamSplits(const JsonObject& metadata,
                                                            int64_t worker,
                                                            const std::string& library) {
  const std::string document = "_metadata of " + library;
  const JsonObject ours = FindMember<JsonObject>(metadata, "kvctl").value_or(JsonObject());
  const auto parallel = FindMember<JsonObject>(ours, "tensor_parallel");
  std::unordered_map<std::string, ParamSplit> found;
  if (!parallel) return found;
  std::vector<ParamSplit> splits;
  for (const ffi::Any& item : GetMember<ffi::json::Array>(*parallel, "splits", document)) {
    auto json = item.try_cast<JsonObject>();
    if (!json) Throw(ErrorKind::kValue, document, ": a split of tensor_parallel is no object");
    splits.push_back(ReadSplit(*json, worker, document));
  }
  for (const auto& [name, value] : GetMember<JsonObject>(*parallel, "params", document)) {
    const auto index = value.try_cast<int64_t>().value_or(-1);
    if (index < 0 || index >= static_cast<int64_t>(splits.size())) {
      Throw(ErrorKind::kValue, document, ": tensor_parallel has no split ", index);
    }
    found.emplace(std::string(name.cast<ffi::String>()), splits[static_cast<size_t>(index)]);
  }
  return found;
}

void CheckSplit(const ParamSplit& split, const ParamRecord& record, const std::string& library) {
  const auto ndim = static_cast<int64_t>(record.shape.size());
  const bool inside = split.axis >= 0 && split.axis < ndim;
  for (const auto& [begin, end] : split.ranges) {
    if (inside && end <= record.shape[static_cast<size_t>(split.axis)]) continue;
    Throw(ErrorKind::kValue, library, " takes elements ", begin, " to ", end, " along axis ",
          split.axis, " of parameter ", record.name, ", which is ",
          DescribeTensor(record.dtype, record.shape));
  }
  if (record.dtype.bits % 8 != 0 || (split.minus_infinity && record.dtype.bits != 32)) {
    Throw(ErrorKind::kValue, library, " splits parameter ", record.name, ", which is ",
          DescribeTensor(record.dtype, record.shape), " and cannot be");
  }
}

int64_t ShareBytes(const ParamSplit& split, const ParamRecord& record) {
  const int64_t extent = record.shape[static_cast<size_t>(split.axis)];
  int64_t taken = 0;
  for (const auto& [begin, end] : split.ranges) taken += end - begin;
  return extent == 0 ? 0 : record.nbytes / extent * taken;
}

MappedFile::MappedFile(const std::string& path, int64_t nbytes)
    : size_(static_cast<size_t>(nbytes)) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  void* mapped =
      file < 0 || size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
  if (file >= 0) close(file);
  if (file < 0 || mapped == MAP_FAILED) {
    Throw(ErrorKind::kRuntime, "cannot read ", nbytes, " bytes from ", path);
  }
  data_ = static_cast<char*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

Tensor ReadShare(const char* bytes, const ParamRecord& record, const ParamSplit& split) {
  const auto axis = static_cast<size_t>(split.axis);
  const int64_t outer = Product(record.shape, 0, axis);
  const int64_t inner = Product(record.shape, axis + 1, record.shape.size());
  const int64_t extent = record.shape[axis];
  std::vector<int64_t> shape = record.shape;
  shape[axis] = std::accumulate(split.local.begin(), split.local.end(), int64_t{0});
  Tensor share = Tensor::Empty(ffi::Shape(shape.begin(), shape.end()), record.dtype, {kDLCPU, 0});
  const int64_t size = record.dtype.bits / 8, saved = record.widened ? 2 : size;
  char* to = static_cast<char*>(share->data) + share->byte_offset;
  for (int64_t row = 0; row < outer; ++row) {
    for (size_t part = 0; part < split.local.size(); ++part) {
      const auto [begin, end] = split.ranges[part];
      Copy(bytes + (row * extent + begin) * inner * saved, (end - begin) * inner, record, to);
      to += (end - begin) * inner * size;
      const int64_t rest = (split.local[part] - (end - begin)) * inner;
      if (split.minus_infinity) {
        std::fill_n(reinterpret_cast<float*>(to), rest, -std::numeric_limits<float>::infinity());
      } else {
        std::memset(to, 0, static_cast<size_t>(rest * size));
      }
      to += rest * size;
    }
  }
  return share;
}

}  // namespace kvctl
