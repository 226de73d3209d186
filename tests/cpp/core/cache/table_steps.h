// A table, and complete steps on it.
#ifndef KVCTL_TESTS_CORE_TABLE_STEPS_H_
#define KVCTL_TESTS_CORE_TABLE_STEPS_H_

#include <vector>

#include "core/cache/sequence_table.h"

namespace kvctl {

struct TableSteps {
  explicit TableSteps(const TableConfig& config) : table(config) {}

  /*! \brief Appends committed tokens. */
  void Chain(int64_t id, int32_t rows) { Step({id, rows}); }
  /*! \brief Appends pending nodes. */
  void Tree(int64_t id, const std::vector<int32_t>& parents) {
    Step({id, static_cast<int64_t>(parents.size()), true, parents.data()});
  }

  SequenceTable table;
  CopyPlan moves;  // of the last step

 private:
  void Step(const StepRequest& request) {
    moves.clear();
    table.BeginForward({request}, &moves);
    table.EndForward();
  }
};

}  // namespace kvctl

#endif  // KVCTL_TESTS_CORE_TABLE_STEPS_H_
