/*!
 * \file runtime/generate/text_batch.h
 * \brief Which texts run, which wait for room, and when they leave.
 */
#ifndef KVCTL_RUNTIME_GENERATE_TEXT_BATCH_H_
#define KVCTL_RUNTIME_GENERATE_TEXT_BATCH_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "runtime/generate/rounds.h"

namespace kvctl {

/*!
 * \brief Texts that share the rounds of one runner.
 *
 * Texts enter in their order, as sequences and pages are free, and leave when they end. Where pages
 * run out, the text that entered last leaves the cache and waits; when it comes back, its tokens
 * are forwarded again, and nothing of it is lost.
 */
class TextBatch {
 public:
  /*!
   * \param window The model's sliding window, or 0.
   * \param most The most texts that may run at once; the cache may have room for fewer.
   */
  TextBatch(ModelRunner* runner, Rounds* rounds, Drafting* drafting, std::vector<TextState>* texts,
            int64_t window, int64_t most);

  /*!
   * \brief Runs rounds until every text has ended.
   *
   * Whatever is thrown, no text's sequence stays in the cache, and the drafter has forgotten all.
   */
  void Run();

 private:
  void RunRounds();
  void Enter();
  bool Add(const TextState& text, bool alone);
  bool Forward(std::vector<TextState*>* entering);
  void Leave(TextState* text);
  void LeaveEnded();
  void RemoveAll() noexcept;

  ModelRunner* runner_;
  Rounds* rounds_;
  Drafting* drafting_;
  std::vector<TextState>* texts_;
  std::deque<TextState*> waiting_;
  std::vector<TextState*> running_;
  int64_t window_;
  size_t most_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_GENERATE_TEXT_BATCH_H_
