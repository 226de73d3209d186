/*!
 * \file runtime/model/files/file_md5.h
 * \brief The MD5 of files, several at once in one thread.
 */
#ifndef KVCTL_RUNTIME_MODEL_FILES_FILE_MD5_H_
#define KVCTL_RUNTIME_MODEL_FILES_FILE_MD5_H_

#include <cstdint>
#include <functional>
#include <string>

namespace kvctl {

/*! \brief A file whose first bytes are to be hashed. */
struct HashedFile {
  std::string path;
  int64_t nbytes = -1;  //!< -1: all of it
  size_t index = 0;     //!< the caller's
};

/*!
 * \brief Hashes files until none is open and there are no more.
 * \param next Gives the next file, or false if there is none, or none yet. It is told the most
 * bytes that an open file has left: a file no longer than that takes no time of its own. 0: none is
 * open.
 * \param found Called with the file's index and its 32 hexadecimal digits, or "" where so many
 * bytes cannot be read.
 * \param stop Asked often; true gives up.
 * \param at_once How many files are open at once, at most 16. One takes as long as sixteen.
 */
void HashFiles(const std::function<bool(int64_t left, HashedFile*)>& next,
               const std::function<void(size_t, const std::string&)>& found,
               const std::function<bool()>& stop, int at_once);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_FILES_FILE_MD5_H_
