// Random operations on the table of a recurrent state, beside a model that keeps every state for
// ever. One file, since the model and the operations belong together.
#include <map>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/recurrent/recurrent_table.h"

namespace {

using kvctl::ErrorKind;
using kvctl::RecurrentTable;
using kvctl::StepOutcome;
using kvctl::StepRequest;

/*! \brief A state is the text of the tokens that led to it: nothing can be confused with anything.
 */
using State = std::string;

struct Model {
  std::vector<State> states{""};  // states[p] is the state after p tokens
  std::vector<bool> kept{true};   // whether the table should still know it
  struct Node {
    int32_t parent;
    State state;
    bool kept;
  };
  std::vector<Node> pending;

  int64_t length() const { return static_cast<int64_t>(states.size()) - 1; }
  void Push(const State& state, bool is_kept, int64_t max_history) {
    states.push_back(state);
    kept.push_back(is_kept);
    Forget(max_history);
  }
  /*! \brief A state is forgotten once a later one serves every target within the bound. */
  void Forget(int64_t max_history) {
    int64_t serving = length() - max_history;
    while (serving > 0 && !kept[serving]) --serving;
    for (int64_t p = 0; p < serving; ++p) kept[p] = false;
  }
  void Truncate(int64_t length) {
    states.resize(length + 1);
    kept.resize(length + 1);
  }
  /*! \brief Last kept position at or before target, or -1. */
  int64_t RollbackTarget(int64_t target) const {
    while (target >= 0 && !kept[target]) --target;
    return target;
  }
};

class Machine {
 public:
  Machine(uint32_t seed, int32_t max_states, int32_t max_history, bool keep_steps)
      : random_(seed),
        max_history_(max_history),
        keep_steps_(keep_steps),
        scarce_(max_states < 1000),
        table_({max_states, 6, max_history, keep_steps}),
        contents_(max_states + 1) {}

  void Run(int32_t steps) {
    for (int32_t i = 0; i < steps; ++i) {
      Act();
      Check();
    }
  }
  int64_t out_of_states() const { return out_of_states_; }
  int64_t landed_inside() const { return landed_inside_; }
  int64_t replays() const { return replays_; }

 private:
  struct Saved {
    int64_t handle;
    Model model;
  };

  int32_t Below(int32_t n) { return static_cast<int32_t>(random_() % n); }
  int64_t AnyId() {
    auto it = models_.begin();
    std::advance(it, Below(static_cast<int32_t>(models_.size())));
    return it->first;
  }

  void Act() {
    const int32_t choice = Below(20);
    if (models_.empty() || (choice == 0 && models_.size() < 6)) {
      const int64_t id = next_id_++;
      table_.Add(id);
      models_[id] = Model();
    } else if (choice == 1) {
      const int64_t id = AnyId();
      table_.Remove(id);
      models_.erase(id);
      saved_.erase(id);
    } else if (choice == 2 && models_.size() < 6) {
      Fork();
    } else if (choice <= 6) {
      PopN();
    } else if (choice <= 9) {
      Commit();
    } else if (choice == 10) {
      const int64_t id = AnyId();
      table_.DropPending({id});
      models_[id].pending.clear();
    } else if (choice == 11) {
      const int64_t id = AnyId();
      if (saved_.count(id) > 0) table_.ReleaseCheckpoint(saved_[id].handle);
      saved_[id] = {table_.MakeCheckpoint(id), models_[id]};
    } else if (choice == 12) {
      Rollback();
    } else {
      Forward();
    }
  }

  void Fork() {
    const int64_t parent = AnyId();
    const int64_t child = next_id_++;
    const Model& model = models_[parent];
    const int64_t total = model.length() + static_cast<int64_t>(model.pending.size());
    const int64_t position = Below(static_cast<int32_t>(total) + 2) - 1;
    Model copy = model;
    const int64_t target = position == -1 ? total : position;
    if (target == 0) copy = Model();
    const bool possible = target == 0 || Cut(&copy, total - target);
    try {
      const int64_t replay = table_.Fork(parent, child, position);
      EXPECT(possible);
      Landed(&copy, child, target, replay);
      models_[child] = copy;
    } catch (const kvctl::Error& error) {
      EXPECT(error.kind() == ErrorKind::kValue && (!possible || scarce_));
    }
  }

  /*! \brief Takes n tokens off a model; false where the bound forbids it. */
  bool Cut(Model* model, int64_t n) const {
    const int64_t pending = static_cast<int64_t>(model->pending.size());
    if (n <= pending) {
      model->pending.resize(pending - n);
      return true;
    }
    model->pending.clear();
    const int64_t target = model->length() - (n - pending);
    if (model->length() - target > max_history_ || model->RollbackTarget(target) < 0) return false;
    model->Truncate(target);
    return true;
  }

  /*! \brief Follows the table to where it landed, which must be right: the last kept position, no
   * later. */
  void Landed(Model* model, int64_t id, int64_t target, int64_t replay) {
    const int64_t length = table_.Get(id).length();
    if (model->pending.empty()) {
      EXPECT_EQ(length + replay, target);
      if (!scarce_) EXPECT_EQ(length, model->RollbackTarget(target));
      landed_inside_ += replay == 0;
      replays_ += replay > 0;
    }
    EXPECT(length <= model->length());
    model->Truncate(length);
  }

  void PopN() {
    const int64_t id = AnyId();
    const Model& model = models_[id];
    const int64_t total = model.length() + static_cast<int64_t>(model.pending.size());
    const int64_t n = Below(static_cast<int32_t>(std::min<int64_t>(total, max_history_ + 4)) + 1);
    Model copy = model;
    const bool possible = Cut(&copy, n);
    try {
      const int64_t replay = table_.PopN(id, n);
      EXPECT(possible);
      Landed(&copy, id, total - n, replay);
      models_[id] = copy;
    } catch (const kvctl::Error& error) {
      EXPECT(error.kind() == ErrorKind::kValue && (!possible || scarce_));
    }
  }

  void Commit() {
    std::vector<int64_t> ids;
    std::vector<std::vector<int32_t>> kept;
    for (auto& item : models_) {
      if (Below(2) == 0) continue;
      std::vector<int32_t> path;
      const auto& pending = item.second.pending;
      for (int32_t node = 0; node < static_cast<int32_t>(pending.size()); ++node) {
        const int32_t above = path.empty() ? -1 : path.back();
        if (pending[node].parent == above && Below(4) > 0) path.push_back(node);
      }
      ids.insert(ids.begin(), item.first);  // another order than the table's
      kept.insert(kept.begin(), path);
    }
    const std::vector<int32_t> replay = table_.Commit(ids, kept);
    for (size_t i = 0; i < ids.size(); ++i) {
      Model& model = models_[ids[i]];
      size_t landed = kept[i].size();
      while (landed > 0 && !model.pending[kept[i][landed - 1]].kept) --landed;
      EXPECT_EQ(replay[i], static_cast<int32_t>(kept[i].size() - landed));
      for (size_t k = 0; k < landed; ++k) {
        model.Push(model.pending[kept[i][k]].state, model.pending[kept[i][k]].kept, max_history_);
      }
      landed_inside_ += landed > 0;
      replays_ += replay[i] > 0;
      model.pending.clear();
    }
  }

  void Rollback() {
    const int64_t id = AnyId();
    if (saved_.count(id) == 0) return;
    table_.Rollback(id, saved_[id].handle);
    const Model& then = saved_[id].model;
    Model now = then;  // what it knew then, less what was freed since
    const auto& history = table_.Get(id).history;
    for (int64_t p = 0; p < now.length(); ++p) {
      bool known = false;
      for (const kvctl::Snapshot& snapshot : history) known |= snapshot.position == p;
      EXPECT(!known || then.kept[p]);
      now.kept[p] = known;
    }
    models_[id] = now;
  }

  void Forward() {
    std::vector<StepRequest> requests;
    std::vector<std::vector<int32_t>> parents;
    parents.reserve(models_.size());
    bool trees = false;
    for (auto& item : models_) {
      if (Below(2) == 0) continue;
      const int32_t old = static_cast<int32_t>(item.second.pending.size());
      StepRequest request;
      request.seq_id = item.first;
      request.append_length = 1 + Below(5);
      request.pending = old > 0 || Below(2) == 0;
      if (request.AppendsPending() && Below(2) == 0) {
        parents.emplace_back();
        for (int32_t row = 0; row < request.append_length; ++row) {
          int32_t parent = Below(old + row + 1) - 1;
          // Without steps a node can hang only on a node whose state is kept.
          while (parent >= 0 && parent < old && !item.second.pending[parent].kept) --parent;
          parents.back().push_back(parent);
          trees |= row > 0 && parent != old + row - 1;
        }
        request.parents = parents.back().data();
      } else if (old > 0 && !item.second.pending.back().kept) {
        continue;
      }
      requests.push_back(request);
    }
    if (requests.empty()) return;
    try {
      table_.BeginForward(requests);
    } catch (const kvctl::Error& error) {
      EXPECT(error.kind() == ErrorKind::kOutOfPages && scarce_);
      ++out_of_states_;
      return;
    }
    Compute(requests);
    if (Below(8) == 0) {
      table_.AbortForward();
      return;
    }
    const bool final_only = !trees && Below(3) == 0;
    table_.EndForward(final_only ? StepOutcome::kFinal : StepOutcome::kSteps);
    Follow(requests, final_only);
  }

  /*! \brief What a model's forward does: every row from its source, into its own state. */
  void Compute(const std::vector<StepRequest>& requests) {
    const kvctl::RecurrentStep& step = table_.step();
    results_.clear();
    size_t expected_rows = 0;
    for (const StepRequest& request : requests) expected_rows += request.append_length;
    EXPECT_EQ(static_cast<size_t>(step.num_rows()), expected_rows);
    for (int32_t row = 0; row < step.num_rows(); ++row) {
      const int32_t source = step.row_sources[row];
      const State& from =
          source >= 0 ? results_[source] : contents_[step.root_state_indices[-1 - source]];
      results_.push_back(from + static_cast<char>('a' + Below(26)));
    }
    for (int32_t row = 0; row < step.num_rows(); ++row) {
      if (step.row_state_indices[row] >= 0) contents_[step.row_state_indices[row]] = results_[row];
    }
  }

  void Follow(const std::vector<StepRequest>& requests, bool final_only) {
    size_t row = 0;
    for (const StepRequest& request : requests) {
      Model& model = models_[request.seq_id];
      const int32_t old = static_cast<int32_t>(model.pending.size());
      bool chain = true;
      for (int32_t i = 1; request.parents != nullptr && i < request.append_length; ++i) {
        chain &= request.parents[i] == old + i - 1;
      }
      for (int32_t i = 0; i < request.append_length; ++i, ++row) {
        const bool last = i + 1 == request.append_length;
        bool is_kept = keep_steps_ && !final_only;
        if (last && chain) is_kept = true;
        if (request.AppendsPending()) {
          const int32_t parent = request.parents != nullptr ? request.parents[i] : old + i - 1;
          const State& above = parent < 0 ? model.states.back() : model.pending[parent].state;
          EXPECT_EQ(results_[row].substr(0, results_[row].size() - 1), above);
          model.pending.push_back({parent, results_[row], is_kept});
        } else {
          EXPECT_EQ(results_[row].substr(0, results_[row].size() - 1), model.states.back());
          model.Push(results_[row], is_kept, max_history_);
        }
      }
    }
  }

  void Check() {
    EXPECT_EQ(table_.num_sequences(), models_.size());
    for (const auto& item : models_) {
      const Model& model = item.second;
      const kvctl::RecurrentSequence& sequence = table_.Get(item.first);
      EXPECT_EQ(sequence.length(), model.length());
      EXPECT_EQ(sequence.pending.size(), model.pending.size());
      size_t kept = 0;
      for (const kvctl::Snapshot& snapshot : sequence.history) {
        EXPECT_EQ(contents_[snapshot.state_index], model.states[snapshot.position]);
        EXPECT(model.kept[snapshot.position]);
        ++kept;
      }
      if (!scarce_) {
        for (bool known : model.kept) kept -= known;
        EXPECT_EQ(kept, size_t{0});
      }
      for (size_t node = 0; node < model.pending.size(); ++node) {
        const int32_t state_index = sequence.pending[node].state_index;
        EXPECT_EQ(sequence.pending[node].parent, model.pending[node].parent);
        EXPECT_EQ(state_index >= 0, model.pending[node].kept);
        if (state_index >= 0) EXPECT_EQ(contents_[state_index], model.pending[node].state);
      }
    }
    const std::vector<int32_t> counts = table_.CountReferences();
    for (size_t state_index = 0; state_index < counts.size(); ++state_index) {
      EXPECT_EQ(counts[state_index], table_.pool().ref_count(static_cast<int32_t>(state_index)));
      if (counts[state_index] == 0) contents_[state_index] = "poison";
    }
  }

  std::mt19937 random_;
  int64_t max_history_;
  bool keep_steps_;
  bool scarce_;  // states may run short, so that history is dropped before its bound
  RecurrentTable table_;
  std::vector<State> contents_;
  std::vector<State> results_;
  std::map<int64_t, Model> models_;
  std::map<int64_t, Saved> saved_;
  int64_t next_id_ = 100;
  int64_t out_of_states_ = 0;
  int64_t landed_inside_ = 0;
  int64_t replays_ = 0;
};

}  // namespace

TEST(recurrent_machine_with_steps) {
  int64_t inside = 0;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    Machine machine(seed, 2000, 1 + seed % 9, true);
    machine.Run(300);
    inside += machine.landed_inside();
  }
  EXPECT(inside > 300);
}

TEST(recurrent_machine_without_steps) {
  int64_t replays = 0;
  for (uint32_t seed = 0; seed < 30; ++seed) {
    Machine machine(seed, 2000, seed % 9, false);
    machine.Run(300);
    replays += machine.replays();
  }
  EXPECT(replays > 300);
}

TEST(recurrent_machine_short_of_states) {
  int64_t refusals = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    Machine machine(seed, 14 + seed % 16, 3 + seed % 6, seed % 3 > 0);
    machine.Run(300);
    refusals += machine.out_of_states();
  }
  EXPECT(refusals > 100);
}
