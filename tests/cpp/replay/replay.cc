// Operations on the sequences of a model, read from standard input; what they return goes to
// standard output, the bits of logits in hexadecimal. Python runs the same ones beside it.
//
//   replay MODEL_DIR KEEP_STEPS < operations
#include <kvctl/api.h>
#include <kvctl/error.h>
#include <kvctl/model_runner.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

using tvm::runtime::Tensor;

std::vector<int32_t> ReadList(std::istream& line) {
  size_t count = 0;
  line >> count;
  std::vector<int32_t> values(count);
  for (int32_t& value : values) line >> value;
  return values;
}

void Print(const Tensor& logits) {
  const auto* data = static_cast<const uint32_t*>(logits->data) + logits->byte_offset / 4;
  for (int64_t i = 0; i < logits->shape[0] * logits->shape[1]; ++i) std::printf("%08x", data[i]);
  std::printf(" ");
}

class Program {
 public:
  Program(const std::string& model, bool keep_steps) : runner_(Load(model, keep_steps)) {}

  void Do(const std::string& text) {
    std::istringstream line(text);
    std::string name;
    int64_t id = 0;
    line >> name >> id;
    try {
      Do(name, id, line);
      std::printf("ok");
    } catch (const std::exception& thrown) {
      const kvctl::Error error = kvctl::AsError(thrown);
      std::printf("%s: %s", kvctl::ErrorKindName(error.kind()), error.what());
    }
    std::printf(" replayed %d\n", static_cast<int>(runner_.replayed_tokens()));
  }

 private:
  static kvctl::ModelRunner Load(const std::string& model, bool keep_steps) {
    kvctl::RunnerOptions options;
    options.prefill_chunk_size = 16;
    options.page_size = 4;
    options.max_history = 8;
    options.max_sequences = 6;
    options.keep_steps = keep_steps;
    return kvctl::ModelRunner::Load(model, options);
  }

  void Do(const std::string& name, int64_t id, std::istream& line) {
    if (name == "add") {
      runner_.AddSequence(id);
    } else if (name == "remove") {
      runner_.RemoveSequence(id);
    } else if (name == "fork") {
      int64_t child = 0, position = 0;
      line >> child >> position;
      runner_.ForkSequence(id, child, position);
    } else if (name == "prefill") {
      Print(runner_.Prefill({id}, {ReadList(line)}));
    } else if (name == "decode") {
      Print(runner_.Decode({id}, ReadList(line)));
    } else if (name == "verify") {
      const std::vector<int32_t> tokens = ReadList(line);
      Print(runner_.Verify({id}, {kvctl::TokenTree(tokens, ReadList(line))}));
    } else if (name == "window") {  // forwards under a mask of their own
      const std::vector<int32_t> tokens = ReadList(line);
      kvctl::StepRequest request;
      request.seq_id = id;
      request.append_length = static_cast<int64_t>(tokens.size());
      request.mask = kvctl::Mask::Window(3);
      Print(runner_.Forward({request}, tokens));
    } else if (name == "commit") {
      runner_.Commit({id}, {ReadList(line)});
    } else if (name == "drop") {
      runner_.DropPending({id});
    } else if (name == "popn") {
      int64_t n = 0;
      line >> n;
      runner_.PopN(id, n);
    } else if (name == "checkpoint") {
      points_[id] = runner_.MakeCheckpoint(id);
    } else if (name == "rollback") {
      runner_.Rollback(id, points_.at(id));
    } else if (name == "length") {
      std::printf("%d %d ", static_cast<int>(runner_.SequenceLength(id)),
                  static_cast<int>(runner_.PendingLength(id)));
    } else {
      throw std::invalid_argument("no operation " + name);
    }
  }

  kvctl::ModelRunner runner_;
  std::map<int64_t, kvctl::RunnerCheckpoint> points_;
};

}  // namespace

int main(int, char** argv) {
  try {
    kvctl::Init();
    Program program(argv[1], std::strcmp(argv[2], "0") != 0);
    for (std::string line; std::getline(std::cin, line);) program.Do(line);
  } catch (const std::exception& error) {
    std::cerr << "replay: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
