#include "ffi/verify_args.h"

#include <algorithm>
#include <limits>
#include <string>
#include <type_traits>

#include "kvctl/error.h"

namespace kvctl {
namespace {

std::string ShapeText(const int64_t* shape, size_t n) {
  std::string text = "(";
  for (size_t i = 0; i < n; ++i) {
    text +=
        (i > 0 ? ", " : "") + (shape[i] == kAny ? std::string("any") : std::to_string(shape[i]));
  }
  return text + ")";
}

std::string TypeText(DLDataType type) { return tvm::ffi::DLDataTypeToString(type); }

template <typename T>
const char* TypeName() {
  if (std::is_same_v<T, int32_t>) return "int32";
  if (std::is_same_v<T, int64_t>) return "int64";
  if (std::is_same_v<T, float>) return "float32";
  return "float64";
}

template <typename T>
void CheckType(const TensorView& tensor, const char* name) {
  const DLDataType type = tensor.dtype();
  const uint8_t code = std::is_integral_v<T> ? kDLInt : kDLFloat;
  if (type.code != code || type.bits != sizeof(T) * 8 || type.lanes != 1) {
    Throw(ErrorKind::kType, name, " must be ", TypeName<T>(), ", got ", TypeText(type));
  }
}

}  // namespace

int64_t InRange(int64_t value, int64_t low, int64_t high, const char* name) {
  if (value < low || value > high) {
    Throw(ErrorKind::kValue, name, " must be in [", low, ", ", high, "], got ", value);
  }
  return value;
}

uint32_t RootPosition(int64_t position, int64_t sequence, int64_t least) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (position < least || position > kMost) {
    Throw(ErrorKind::kValue, "sequence ", sequence, ": its position must be in [", least, ", ",
          kMost, "], got ", position);
  }
  return static_cast<uint32_t>(position);
}

int32_t VocabSize(int64_t size) {
  return static_cast<int32_t>(InRange(size, 1, kMaxVocab, "the vocabulary size"));
}

void* Pointer(const TensorView& tensor) {
  return static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset();
}

void CheckShape(const TensorView& tensor, const char* name, std::initializer_list<int64_t> shape,
                DLDevice device) {
  if (tensor.device().device_type != device.device_type ||
      tensor.device().device_id != device.device_id) {
    Throw(ErrorKind::kValue, name, " must be on the ",
          device.device_type == kDLCPU ? "CPU" : "device of the logits");
  }
  bool matches = tensor.ndim() == static_cast<int32_t>(shape.size());
  for (size_t i = 0; matches && i < shape.size(); ++i) {
    const int64_t expected = shape.begin()[i];
    matches = expected == kAny || tensor.size(static_cast<int64_t>(i)) == expected;
  }
  if (!matches) {
    Throw(ErrorKind::kValue, name, " must have shape ", ShapeText(shape.begin(), shape.size()),
          ", got ", ShapeText(tensor.shape().data(), tensor.ndim()));
  }
  if (!tensor.IsContiguous()) Throw(ErrorKind::kValue, name, " must be contiguous");
}

template <typename T>
const T* Data(const TensorView& tensor, const char* name, std::initializer_list<int64_t> shape) {
  CheckType<T>(tensor, name);
  CheckShape(tensor, name, shape);
  return static_cast<const T*>(Pointer(tensor));
}

template const int32_t* Data(const TensorView&, const char*, std::initializer_list<int64_t>);
template const int64_t* Data(const TensorView&, const char*, std::initializer_list<int64_t>);
template const float* Data(const TensorView&, const char*, std::initializer_list<int64_t>);
template const double* Data(const TensorView&, const char*, std::initializer_list<int64_t>);

template <typename T>
Ragged<T>::Ragged(const MaybeTensor& begins, const MaybeTensor& elements, const char* name,
                  int64_t n) {
  if (!begins.has_value()) return;
  const std::string ptr_name = std::string(name) + "_ptr", ids_name = std::string(name) + "_ids";
  ptr = Data<int64_t>(begins.value(), ptr_name.c_str(), {n + 1});
  values = Data<T>(elements.value(), ids_name.c_str(), {kAny});
  const int64_t size = elements.value().numel();
  if (ptr[0] != 0 || ptr[n] != size || !std::is_sorted(ptr, ptr + n + 1)) {
    Throw(ErrorKind::kValue, ptr_name, " must ascend from 0 to ", size, ", the number of values");
  }
}

template struct Ragged<int32_t>;

void CheckMatrix(const TensorView& tensor, const char* name, DLDevice device) {
  CheckShape(tensor, name, {kAny, kAny}, device);
}

DType FloatRowType(const TensorView& tensor, const char* name, bool distribution) {
  const DLDataType type = tensor.dtype();
  const bool is_float = type.code == kDLFloat && type.lanes == 1;
  if (is_float && type.bits == 32) return DType::kFloat32;
  if (distribution) {
    if (is_float && type.bits == 64) return DType::kFloat64;
    Throw(ErrorKind::kType, name, " must be float32 or float64, got ", TypeText(type));
  }
  if (is_float && type.bits == 16) return DType::kFloat16;
  if (type.code == kDLBfloat && type.bits == 16 && type.lanes == 1) return DType::kBFloat16;
  Throw(ErrorKind::kType, name, " must be float32, float16 or bfloat16, got ", TypeText(type));
}

const void* RowPointer(const TensorView& matrix, int64_t row) {
  return static_cast<const char*>(Pointer(matrix)) +
         row * matrix.size(1) * (matrix.dtype().bits / 8);
}

SamplingTable::SamplingTable(const TensorView& table, const MaybeTensor& bias_ptr,
                             const MaybeTensor& bias_ids, const MaybeTensor& bias_values,
                             int32_t vocab_size, int64_t n) {
  constexpr int64_t kColumns = 7;
  const double* values = Data<double>(table, "sampling", {kAny, kColumns});
  const int64_t rows = table.size(0);
  if (rows != 1 && rows != n) {
    Throw(ErrorKind::kValue, "sampling parameters must be one for all or one for each of ", n,
          " sequences, got ", rows);
  }
  const Ragged<int32_t> bias(bias_ptr, bias_ids, "bias", rows);
  const float* biases = nullptr;
  if (bias_ptr.has_value()) {
    biases = Data<float>(bias_values.value(), "bias_values", {bias_ids.value().numel()});
  }
  for (int64_t i = 0; i < rows; ++i, values += kColumns) {
    Sampling sampling;
    sampling.temperature = values[0];
    if (!(values[1] >= 0 && values[1] <= std::numeric_limits<int32_t>::max())) {
      Throw(ErrorKind::kValue, "top_k must be in [0, 2^31), got ", values[1]);
    }
    sampling.top_k = static_cast<int32_t>(values[1]);
    sampling.top_p = values[2];
    sampling.min_p = values[3];
    sampling.repetition_penalty = values[4];
    sampling.presence_penalty = values[5];
    sampling.frequency_penalty = values[6];
    for (const int32_t* id = bias.begin(i); id != bias.end(i); ++id) {
      sampling.logit_bias.emplace_back(*id, biases[id - bias.values]);
    }
    sampling.Check(vocab_size);
    samplings_.push_back(std::move(sampling));
  }
}

VerifyBatch::VerifyBatch(const TensorView& target, bool probabilities, const TensorView& nodes,
                         const TensorView& ptrs) {
  device_ = target.device();
  CheckMatrix(target, probabilities ? "probabilities" : "logits", device_);
  vocab_ = VocabSize(target.size(1));
  num_rows_ = target.size(0);
  const DType type =
      FloatRowType(target, probabilities ? "probabilities" : "logits", probabilities);
  const int64_t* ptr = Data<int64_t>(ptrs, "ptrs", {2, kAny});
  const int64_t size = ptrs.size(1) - 1;
  InRange(size, 0, std::numeric_limits<int32_t>::max(), "the batch size");
  node_ptr_ = ptr;
  row_ptr_ = ptr + size + 1;
  if (ptr[0] != 0 || row_ptr_[0] != 0 || row_ptr_[size] != num_rows_) {
    Throw(ErrorKind::kValue, "the trees have ", row_ptr_[size], " rows, but there are ", num_rows_,
          " rows of logits");
  }
  const int64_t n = node_ptr_[size];
  const int32_t* node = Data<int32_t>(nodes, "nodes", {4, n});
  drawn_.resize(n);
  inputs_.resize(size);
  for (int64_t b = 0; b < size; ++b) {
    const int64_t at = node_ptr_[b], count = node_ptr_[b + 1] - at;
    const int64_t rows = row_ptr_[b + 1] - row_ptr_[b];
    if (count < 1 || rows < 1 || node_ptr_[b + 1] > n) {
      Throw(ErrorKind::kValue, "sequence ", b, ": a tree needs at least its root");
    }
    SequenceInput& input = inputs_[b];
    input.size = static_cast<int32_t>(count);
    input.tokens = node + at;
    input.parents = node + n + at;
    input.rows = node + 2 * n + at;
    input.drawn = drawn_.data() + at;
    input.target = RowPointer(target, row_ptr_[b]);
    input.target_type = type;
    input.probabilities = probabilities;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t parent = input.parents[i], row = input.rows[i], kind = node[3 * n + at + i];
      // A root without a token (-1) is one whose token nobody counts: plain sampling.
      if (input.tokens[i] < (i == 0 ? -1 : 0) || input.tokens[i] >= vocab_) {
        Throw(ErrorKind::kValue, "sequence ", b, ": node ", i, " holds token ", input.tokens[i],
              ", but the vocabulary has ", vocab_);
      }
      if (i == 0 ? parent != -1 : parent < 0 || parent >= i) {
        Throw(ErrorKind::kValue, "sequence ", b, ": node ", i, " cannot have parent ", parent);
      }
      if (row < 0 || row >= rows) {
        Throw(ErrorKind::kIndex, "sequence ", b, ": node ", i, " is in row ", row, " of ", rows);
      }
      drawn_[at + i] = static_cast<Drawn>(InRange(kind, 0, 3, "drawn"));
    }
  }
}

void VerifyBatch::SetDraft(const MaybeTensor& given, const MaybeTensor& ids, bool per_node) {
  if (!given.has_value()) return;
  const TensorView& probs = given.value();
  const int64_t rows = per_node ? num_nodes() : num_rows_;
  const bool sparse = ids.has_value();
  const DType type = FloatRowType(probs, "draft_probs", true);
  CheckShape(probs, "draft_probs", {rows, sparse ? kAny : static_cast<int64_t>(vocab_)}, device_);
  const int64_t width = probs.size(1);
  const int32_t* id = sparse ? Data<int32_t>(ids.value(), "draft_ids", {rows, width}) : nullptr;
  for (int64_t b = 0; b < size(); ++b) {
    const int64_t first = per_node ? node_ptr_[b] : row_ptr_[b];
    DraftInput& draft = inputs_[b].draft;
    draft.probs = RowPointer(probs, first);
    draft.type = type;
    draft.width = static_cast<int32_t>(width);
    draft.ids = id == nullptr ? nullptr : id + first * width;
    draft.per_node = per_node;
  }
}

void VerifyBatch::SetSampling(const TensorView& table, const MaybeTensor& bias_ptr,
                              const MaybeTensor& bias_ids, const MaybeTensor& bias_values) {
  samplings_.emplace(table, bias_ptr, bias_ids, bias_values, vocab_, size());
  for (int64_t b = 0; b < size(); ++b) inputs_[b].sampling = &(*samplings_)[b];
}

void VerifyBatch::SetThresholds(double epsilon, double delta) {
  for (SequenceInput& input : inputs_) {
    input.epsilon = epsilon;
    input.delta = delta;
  }
}

void VerifyBatch::SetHistory(const MaybeTensor& ptr, const MaybeTensor& ids) {
  const Ragged<int32_t> history(ptr, ids, "history", size());
  for (int64_t b = 0; b < size(); ++b) {
    for (const int32_t* token = history.begin(b); token != history.end(b); ++token) {
      if (*token >= 0 && *token < vocab_) continue;
      Throw(ErrorKind::kValue, "history holds token ", *token, ", but the vocabulary has ", vocab_);
    }
    inputs_[b].history = history.begin(b);
    inputs_[b].history_size = history.end(b) - history.begin(b);
  }
}

void VerifyBatch::SetBitmask(const MaybeTensor& bitmask) {
  if (!bitmask.has_value()) return;
  const int64_t words = (static_cast<int64_t>(vocab_) + 31) / 32;
  const auto* bits = reinterpret_cast<const uint32_t*>(
      Data<int32_t>(bitmask.value(), "bitmask", {num_nodes(), words}));
  for (int64_t b = 0; b < size(); ++b) inputs_[b].bitmask = bits + node_ptr_[b] * words;
}

}  // namespace kvctl
