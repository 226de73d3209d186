#include "runtime/verify/verify_batch.h"

#include <algorithm>

#include "kvctl/checking.h"
#include "kvctl/error.h"
#include "runtime/verify/logits_check.h"
#include "runtime/verify/verify_checks.h"

namespace kvctl {
namespace {

void CheckTree(const TreeView& tree, int64_t sequence, int32_t vocab_size) {
  for (int32_t i = 0; i < tree.size; ++i) {
    const int32_t token = tree.tokens[i], parent = tree.parents[i], row = tree.rows[i];
    // The root of plain sampling has no token (-1).
    if (token < (i == 0 ? -1 : 0) || token >= vocab_size) {
      Throw(ErrorKind::kValue, "sequence ", sequence, ": node ", i, " holds token ", token,
            ", but the vocabulary has ", vocab_size);
    }
    if (i == 0 ? parent != -1 : parent < 0 || parent >= i) {
      Throw(ErrorKind::kValue, "sequence ", sequence, ": node ", i, " cannot have parent ", parent);
    }
    if (row < 0 || row >= tree.num_rows) {
      Throw(ErrorKind::kIndex, "sequence ", sequence, ": node ", i, " is in row ", row, " of ",
            tree.num_rows);
    }
  }
}

void ExpandDrawn(int64_t num_nodes, std::vector<Drawn>* drawn) {
  const auto given = static_cast<int64_t>(drawn->size());
  if (given == num_nodes) return;
  if (given != 1) {
    Throw(ErrorKind::kValue, "drawn must be one for all or one for each of ", num_nodes,
          " nodes, got ", given);
  }
  drawn->assign(num_nodes, drawn->front());
}

void CheckHistory(const IntList& history, int64_t sequence, int32_t vocab_size) {
  for (int64_t i = 0; i < history.size; ++i) {
    if (history.data[i] >= 0 && history.data[i] < vocab_size) continue;
    Throw(ErrorKind::kValue, "sequence ", sequence, ": history holds token ", history.data[i],
          ", but the vocabulary has ", vocab_size);
  }
}

void CheckBatch(const BatchArrays& arrays, int64_t num_nodes, int32_t vocab_size) {
  const auto size = static_cast<int64_t>(arrays.trees.size());
  int64_t rows = 0;
  for (const TreeView& tree : arrays.trees) rows += tree.num_rows;
  if (rows != arrays.num_rows) {
    Throw(ErrorKind::kValue, "the trees have ", rows, " rows, but there are ", arrays.num_rows,
          " rows of logits");
  }
  const int64_t draft_rows = arrays.draft.per_node ? num_nodes : arrays.num_rows;
  if (arrays.draft.probs != nullptr && arrays.draft_rows != draft_rows) {
    Throw(ErrorKind::kValue, "draft_probs must have ", draft_rows, " rows, one for each ",
          arrays.draft.per_node ? "node" : "row of logits", ", got ", arrays.draft_rows);
  }
  if (!arrays.history.empty() && static_cast<int64_t>(arrays.history.size()) != size) {
    Throw(ErrorKind::kValue, "history must have one entry for each of ", size, " sequences, got ",
          arrays.history.size());
  }
  CheckSamplings(arrays.sampling, size, vocab_size);
}

bool HasCoupled(const SequenceInput& input) {
  const Drawn* end = input.drawn + input.size;
  return std::find(input.drawn + 1, end, Drawn::kCoupled) != end;
}

}  // namespace

std::vector<TreeView> LoneRoots(int64_t size) {
  static constexpr int32_t kNone = -1, kFirst = 0;
  return std::vector<TreeView>(size, TreeView{1, 1, &kNone, &kNone, &kFirst});
}

int64_t NumNodes(const std::vector<TreeView>& trees) {
  int64_t n = 0;
  for (const TreeView& tree : trees) n += tree.size;
  return n;
}

std::vector<VerifyItem> MakeItems(BatchArrays* arrays) {
  const int32_t vocab_size = CheckVocabSize(arrays->vocab_size);
  const int64_t num_nodes = NumNodes(arrays->trees);
  CheckBatch(*arrays, num_nodes, vocab_size);
  ExpandDrawn(num_nodes, &arrays->drawn);
  const auto size = static_cast<int64_t>(arrays->trees.size());
  const int64_t stride = arrays->target_stride == 0 ? vocab_size : arrays->target_stride;
  const int64_t row_bytes = DTypeSize(arrays->target_type) * stride;
  const int64_t width = arrays->draft.ids == nullptr ? vocab_size : arrays->draft.width;
  const int64_t bitmask_words = (static_cast<int64_t>(vocab_size) + 31) / 32;
  const auto* target = static_cast<const char*>(arrays->target);
  const auto* draft = static_cast<const char*>(arrays->draft.probs);

  std::vector<VerifyItem> items(size);
  int64_t node = 0, row = 0;
  for (int64_t b = 0; b < size; ++b) {
    const TreeView& tree = arrays->trees[b];
    CheckTree(tree, b, vocab_size);
    SequenceInput& input = items[b].input;
    input.size = tree.size;
    input.tokens = tree.tokens;
    input.parents = tree.parents;
    input.rows = tree.rows;
    input.drawn = arrays->drawn.data() + node;
    input.target = target + row * row_bytes;
    input.target_type = arrays->target_type;
    input.target_stride = arrays->target_stride;
    input.probabilities = arrays->probabilities;
    input.draft = arrays->draft;
    if (draft != nullptr) {
      const int64_t first = arrays->draft.per_node ? node : row;
      input.draft.probs = draft + first * width * DTypeSize(arrays->draft.type);
      input.draft.width = static_cast<int32_t>(width);
      if (arrays->draft.ids != nullptr) input.draft.ids = arrays->draft.ids + first * width;
    }
    input.sampling = &arrays->sampling[arrays->sampling.size() == 1 ? 0 : b];
    if (arrays->bitmask != nullptr) input.bitmask = arrays->bitmask + node * bitmask_words;
    if (!arrays->history.empty() && input.sampling->penalizes()) {  // otherwise it is not read
      CheckHistory(arrays->history[b], b, vocab_size);
      input.history = arrays->history[b].data;
      input.history_size = arrays->history[b].size;
    }
    input.epsilon = arrays->epsilon;
    input.delta = arrays->delta;

    VerifyItem& item = items[b];
    const int64_t request = arrays->request_ids == nullptr ? 0 : arrays->request_ids[b];
    item.stream = {arrays->seed, static_cast<uint64_t>(request)};
    item.root_position =
        CheckRootPosition(arrays->root_positions == nullptr ? 0 : arrays->root_positions[b], b,
                          arrays->least_root_position);
    const bool gumbel = arrays->gumbel || arrays->rule == Rule::kCoupled || HasCoupled(input);
    item.noise = gumbel ? Noise::kGumbel : Noise::kUniform;
    node += tree.size;
    row += tree.num_rows;
  }
  if (Checking()) CheckLogits(*arrays, items);
  return items;
}

const uint32_t* FitBitmask(const uint32_t* rows, int64_t num_rows, int64_t width,
                           int64_t vocab_size, std::vector<uint32_t>* fitted) {
  const int64_t words = (vocab_size + 31) / 32;
  if (width < 0) Throw(ErrorKind::kValue, "bitmask_words must be at least 0, got ", width);
  if (rows == nullptr || width == 0 || width == words) return rows;
  fitted->assign(num_rows * words, 0);
  for (int64_t i = 0; i < num_rows; ++i) {
    const uint32_t* row = rows + i * width;
    for (int64_t word = words; word < width; ++word) {
      if (row[word] == 0) continue;
      Throw(ErrorKind::kValue, "bitmask row ", i, " allows tokens in word ", word, ", but the ",
            vocab_size, " logits of a row take ", words, " words");
    }
    std::copy(row, row + std::min(width, words), fitted->data() + i * words);
  }
  return fitted->data();
}

void SetOutputs(const OutputArrays& outputs, std::vector<VerifyItem>* items) {
  int64_t node = 0;
  for (VerifyItem& item : *items) {
    item.nodes = outputs.nodes + node;
    item.tokens = outputs.tokens + node;
    item.kept = outputs.kept + node;
    item.log_probs = outputs.log_probs == nullptr ? nullptr : outputs.log_probs + node;
    node += item.input.size;
  }
}

}  // namespace kvctl
