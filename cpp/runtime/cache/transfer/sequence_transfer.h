/*!
 * \file runtime/cache/transfer/sequence_transfer.h
 * \brief Moves the K and V of sequences out of a cache and into another.
 */
#ifndef KVCTL_RUNTIME_CACHE_TRANSFER_SEQUENCE_TRANSFER_H_
#define KVCTL_RUNTIME_CACHE_TRANSFER_SEQUENCE_TRANSFER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/cache/sequence_table.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/cache/backend/cache_backend.h"
#include "runtime/cache/step/key_rotator.h"

namespace kvctl {

/*!
 * \brief Saves and loads sequences: whole, as TVM's page groups, or as a range of tokens.
 *
 * The methods are those of PagedKVCacheObj and of TVM's interface, which say more.
 */
class SequenceTransfer {
 public:
  using Tensor = tvm::runtime::Tensor;

  /*! \brief All arguments must outlive this object. */
  SequenceTransfer(const PagedKVCacheConfig& config, SequenceTable* table, CacheBackend* backend,
                   KeyRotator* rotator)
      : config_(config), table_(*table), backend_(*backend), rotator_(*rotator) {}

  SavedSequence Save(int64_t seq_id) const;
  void Load(int64_t seq_id, const SavedSequence& saved);

  /*! \brief Reads the tokens [begin, end) as (num_layers, end - begin, num_kv_heads, head_dim). */
  void ReadTokens(int64_t seq_id, int64_t begin, int64_t end, const Tensor& k,
                  const Tensor& v) const;
  /*! \brief Writes tokens from `begin` on. Their pages must not be shared. */
  void WriteTokens(int64_t seq_id, int64_t begin, const Tensor& k, const Tensor& v);

  std::string Metadata(int64_t seq_id) const;
  /*! \param target (1, pages, 2, num_kv_heads, page_size, head_dim) */
  void ExportPageGroup(int64_t seq_id, int64_t group_id, const Tensor& target) const;
  /*! \brief Removes all sequences, as TVM's cache does, and waits for a sequence's page groups. */
  void PrepareImport(int64_t seq_id, const std::string& metadata);
  void ImportPageGroup(int64_t seq_id, int64_t group_id, const Tensor& source);
  /*! \brief Adds the sequence once all of its page groups were imported. */
  void FinishImport(int64_t seq_id);
  void CancelImport() { import_.reset(); }

 private:
  /*! \brief A sequence that is imported layer by layer. */
  struct Import {
    int64_t seq_id;
    int64_t length;
    std::vector<Tensor> layers;  // K and V (2, length, num_kv_heads, head_dim), or undefined
  };

  /*! \brief The slots of tokens [begin, end), counted as the sequence's length counts them. */
  std::vector<int32_t> Slots(int64_t seq_id, int64_t begin, int64_t end) const;
  /*! \brief The slots of all committed tokens that no window has evicted. */
  std::vector<int32_t> HeldSlots(int64_t seq_id) const;
  /*! \brief Checks the values of `length` tokens: (num_layers, length, num_kv_heads, head_dim). */
  void CheckKV(const Tensor& kv, const char* what, int64_t length) const;
  /*! \brief The shape of `length` tokens as the pages hold them. */
  tvm::ffi::Shape StoredShape(int64_t length) const;
  /*! \brief The length of a sequence that page groups can describe: committed tokens, none evicted,
   * at positions 0, 1, 2, ... */
  int64_t LengthForExport(int64_t seq_id) const;
  /*! \brief Checks a group of a sequence of `length` tokens. */
  void CheckPageGroup(const Tensor& group, int64_t group_id, int64_t length) const;
  /*! \brief The import in progress. \throws Error kRuntime if it is not that of `seq_id`. */
  Import& ImportOf(int64_t seq_id);

  const PagedKVCacheConfig& config_;
  SequenceTable& table_;
  CacheBackend& backend_;
  KeyRotator& rotator_;
  std::optional<Import> import_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_TRANSFER_SEQUENCE_TRANSFER_H_
