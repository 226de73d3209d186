#include "runtime/model/files/file_md5.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/md5_lanes.h"

namespace kvctl {
namespace {

constexpr size_t kPiece = 64 << 10;
// Room for the padding behind the last piece, and so that streams do not share cache sets.
constexpr size_t kStride = kPiece + 3 * kMd5Block;

/*! \brief One file that is being read. */
struct Stream {
  int file = -1;  // -1: none
  size_t index = 0;
  uint64_t total = 0;
  int64_t left = 0;    // bytes to read still; of a whole file, unknown
  size_t held = 0;     // bytes in the buffer, whole blocks
  bool ended = false;  // the padding is in the buffer
  bool whole = false;
};

class Hasher {
 public:
  Hasher(const std::function<bool(int64_t left, HashedFile*)>& next,
         const std::function<void(size_t, const std::string&)>& found, int at_once)
      : next_(next), found_(found), streams_(std::clamp(at_once, 1, kMd5Lanes)) {}
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  ~Hasher() {
    for (Stream& stream : streams_) Close(&stream);
  }

  /*! \brief Hashes one piece of each open file. \return false if there is none. */
  bool Step() {
    size_t blocks = std::numeric_limits<size_t>::max();
    for (size_t lane = 0; lane < streams_.size(); ++lane) {
      if (!Fill(lane)) continue;
      blocks = std::min(blocks, streams_[lane].held / kMd5Block);
    }
    if (blocks == std::numeric_limits<size_t>::max()) return false;
    Md5AddBlocks(buffer_.data(), kStride, blocks, &states_);
    for (size_t lane = 0; lane < streams_.size(); ++lane) {
      Stream& stream = streams_[lane];
      if (stream.file < 0) continue;
      const size_t done = blocks * kMd5Block;
      stream.held -= done;
      // What it has more than the others goes to the front.
      if (stream.held > 0) std::memmove(Buffer(lane), Buffer(lane) + done, stream.held);
      if (stream.held == 0 && stream.ended) {
        const std::string digest = Digest(static_cast<int>(lane));
        Close(&stream);
        found_(stream.index, digest);
      }
    }
    return true;
  }

 private:
  unsigned char* Buffer(size_t lane) { return buffer_.data() + lane * kStride; }

  static void Close(Stream* stream) {
    if (stream->file >= 0) close(stream->file);
    stream->file = -1;
  }

  /*! \brief Makes sure that a stream has a block, opening files as it takes. \return false: none.
   */
  bool Fill(size_t lane) {
    Stream& stream = streams_[lane];
    for (;;) {
      if (stream.file < 0 && !Open(lane)) return false;
      // Filled up at every step, so that short steps are rare.
      if (stream.ended || Read(lane)) return true;
      Close(&stream);
      found_(stream.index, "");
    }
  }

  bool Open(size_t lane) {
    HashedFile file;
    while (next_(Left(), &file)) {
      Stream& stream = streams_[lane] = Stream();
      stream.index = file.index;
      stream.whole = file.nbytes < 0;
      stream.left = file.nbytes;
      stream.file = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
      Md5Start(&states_, static_cast<int>(lane));
      if (stream.file >= 0) return true;
      found_(file.index, "");
    }
    return false;
  }

  /*! \brief The most bytes that an open file has left, those in its buffer among them. */
  int64_t Left() const {
    int64_t left = 0;
    for (const Stream& stream : streams_) {
      if (stream.file < 0) continue;
      left = std::max(left, stream.left + static_cast<int64_t>(stream.held));
    }
    return left;
  }

  /*! \brief Fills a stream's buffer, and pads the last piece. \return false if bytes are missing.
   */
  bool Read(size_t lane) {
    Stream& stream = streams_[lane];
    unsigned char* buffer = Buffer(lane);
    const size_t before = stream.held;
    size_t wanted = kPiece;
    if (!stream.whole) wanted = std::min(wanted, before + static_cast<size_t>(stream.left));
    while (stream.held < wanted) {
      const ssize_t count = read(stream.file, buffer + stream.held, wanted - stream.held);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 || (count == 0 && !stream.whole)) return false;
      if (count == 0) break;
      stream.held += static_cast<size_t>(count);
    }
    stream.total += stream.held - before;
    stream.left -= static_cast<int64_t>(stream.held - before);
    const bool last = stream.whole ? stream.held < kPiece : stream.left == 0;
    if (last) {
      buffer[stream.held++] = 0x80;
      while (stream.held % kMd5Block != kMd5Block - 8) buffer[stream.held++] = 0;
      const uint64_t bits = stream.total * 8;
      for (int i = 0; i < 8; ++i) {
        buffer[stream.held++] = static_cast<unsigned char>(bits >> (8 * i));
      }
      stream.ended = true;
    }
    return true;
  }

  std::string Digest(int lane) const {
    std::string digest;
    for (const auto& words : states_.words) {
      for (int shift = 0; shift < 32; shift += 8) {
        digest += "0123456789abcdef"[words[lane] >> (shift + 4) & 15];
        digest += "0123456789abcdef"[words[lane] >> shift & 15];
      }
    }
    return digest;
  }

  const std::function<bool(int64_t left, HashedFile*)>& next_;
  const std::function<void(size_t, const std::string&)>& found_;
  std::vector<Stream> streams_;
  Md5LaneStates states_{};
  std::vector<unsigned char> buffer_ = std::vector<unsigned char>(kStride * kMd5Lanes);
};

}  // namespace

void HashFiles(const std::function<bool(int64_t left, HashedFile*)>& next,
               const std::function<void(size_t, const std::string&)>& found,
               const std::function<bool()>& stop, int at_once) {
  Hasher hasher(next, found, at_once);
  while (!stop() && hasher.Step()) {
  }
}

}  // namespace kvctl
