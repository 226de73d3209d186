/*!
 * \file kernels/cuda/device/resident_words.h
 * \brief What the device keeps of a step's plan for the steps that follow: the host's copy of it,
 * and what has to change.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_RESIDENT_WORDS_H_
#define KVCTL_KERNELS_CUDA_DEVICE_RESIDENT_WORDS_H_

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace kvctl::cuda {

/*! \brief What a row holds. */
enum class RowKind {
  kPages,      //!< a sequence's page table
  kPositions,  //!< positions of a sequence's committed tokens
  kClasses,
  kLayerClasses,
  kRanges,
  kItems,
  kMerges,
  kItemRows
};

/*! \brief Words from `at` on become the values from `first` on, up to those of the next run. */
struct ChangedRun {
  int32_t at, first;
};

/*!
 * \brief The host's copy of words on a device, in which rows have their places.
 *
 * A step names its rows one after another with Keep, which notes what differs from what the device
 * holds. The copy changes in Commit alone, once the device has been told: a step that fails before
 * leaves both as they were. So rows may go anywhere, and what an abandoned row has left behind does
 * no harm: both sides know it.
 */
class ResidentWords {
 public:
  /*! \brief A row that is given more than it has room for moves; so that it seldom does, it has
   * room for a quarter more than it needs, and for a few. */
  static constexpr int64_t Room(int64_t count) { return (count + count / 4 + 19) / 4 * 4; }

  /*! \brief The device's words are 0. */
  explicit ResidentWords(int64_t num_words) : words_(num_words, 0) {}

  int64_t size() const { return static_cast<int64_t>(words_.size()); }
  /*! \brief What the device holds. */
  const std::vector<int32_t>& words() const { return words_; }

  /*! \brief Forgets the changes that were noted. */
  void BeginStep();
  /*!
   * \brief Gives a row its place, where it has none or has outgrown it, and notes its changes.
   * \return The row's first word; -1 where no room is left.
   */
  int32_t Keep(RowKind kind, int64_t id, const int32_t* values, int64_t count);
  /*! \brief Whether a row of the step found no room. */
  bool overflowed() const { return overflowed_; }
  /*! \brief The room that the step's rows take where no others are. */
  int64_t num_needed() const { return num_needed_; }
  /*! \brief The changes, and one more run where they end. */
  const std::vector<ChangedRun>& runs() const { return runs_; }
  const std::vector<int32_t>& values() const { return values_; }
  int32_t num_runs() const { return static_cast<int32_t>(runs_.size()) - 1; }
  /*! \brief The device has carried out the changes, or will before it reads a row. */
  void Commit() noexcept;

  /*! \brief Forgets all rows, which makes room. What the device holds stays known. */
  void ForgetRows();
  /*! \brief Takes words that the caller has made, all 0, in place of its own: those of other memory
   * on the device. Forgets all rows. */
  void Replace(std::vector<int32_t> words);

 private:
  struct Place {
    int32_t at, room;
  };
  void NoteChanges(int32_t at, const int32_t* values, int64_t count);

  std::vector<int32_t> words_;
  std::map<std::pair<RowKind, int64_t>, Place> places_;
  int64_t num_placed_ = 0;  // words that rows have, or have left behind
  std::vector<ChangedRun> runs_{{0, 0}};
  std::vector<int32_t> values_;
  int64_t num_needed_ = 0;
  bool overflowed_ = false;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_RESIDENT_WORDS_H_
