// A libnccl.so.2 for tests: threads of one process exchange host memory, every call is noted, and
// one can be made to fail. What waits for a worker returns an error once anybody has aborted.
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "distributed/nccl_library.h"
#include "distributed/reduction.h"

namespace {

using namespace kvctl::nccl;  // NOLINT: this file is NCCL
constexpr Result kSystemError = 2;
constexpr Result kRemoteError = 6;

/*! \brief Communicators of one unique id. */
struct Meeting {
  int size = 0;
  bool aborted = false;
  // Of a collective: the workers' sends, and how many have come to it and left it.
  std::vector<const char*> sends;
  int come = 0;
  int64_t round = 0;
  std::map<std::pair<int, int>, std::deque<std::string>> mail;
};

struct FakeComm {
  std::shared_ptr<Meeting> meeting;
  int rank;
};

std::mutex mutex;
std::condition_variable changed;
std::map<std::string, std::shared_ptr<Meeting>> meetings;
std::vector<std::string> notes;
std::map<std::string, std::pair<int, Result>> failures;  // call -> the rank that fails, and how
int num_ids = 0;

thread_local int group_depth = 0;
thread_local std::vector<std::function<Result()>> group_sends, group_receives;

template <typename... Parts>
void Note(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  const std::lock_guard<std::mutex> lock(mutex);
  notes.push_back(text.str());
}

Result Failure(const char* call, int rank) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = failures.find(call);
  if (found == failures.end() || found->second.first != rank) return kSuccess;
  const Result result = found->second.second;
  failures.erase(found);
  return result;
}

size_t Size(DataType dtype) {
  switch (dtype) {
    case kInt8:
    case kUint8:
      return 1;
    case kFloat16:
    case kBfloat16:
      return 2;
    case kInt32:
    case kUint32:
    case kFloat32:
      return 4;
    default:
      return 8;
  }
}

/*! \brief Waits until every worker has come; then act reads all sends, before any may change. */
Result Together(FakeComm* comm, const void* send, const std::function<void(const Meeting&)>& act) {
  Meeting& meeting = *comm->meeting;
  std::unique_lock<std::mutex> lock(mutex);
  const auto all = [&] {
    const int64_t round = meeting.round;
    if (++meeting.come == meeting.size) {
      meeting.come = 0;
      ++meeting.round;
      changed.notify_all();
    }
    changed.wait(lock, [&] { return meeting.round != round || meeting.aborted; });
  };
  meeting.sends.resize(meeting.size);
  meeting.sends[comm->rank] = static_cast<const char*>(send);
  all();
  if (meeting.aborted) return kRemoteError;
  act(meeting);
  all();
  return meeting.aborted ? kRemoteError : kSuccess;
}

template <typename T>
void ReduceAs(const Meeting& meeting, size_t count, RedOp op, std::string* out) {
  using tvm::runtime::ReduceKind;
  const ReduceKind kind = op == kProd  ? ReduceKind::kProd
                          : op == kMax ? ReduceKind::kMax
                          : op == kMin ? ReduceKind::kMin
                                       : ReduceKind::kSum;
  std::memcpy(out->data(), meeting.sends[0], out->size());
  for (int worker = 1; worker < meeting.size; ++worker) {
    kvctl::Reduce<T>(kind, out->data(), out->data(), meeting.sends[worker], count);
  }
  if (op == kAvg) kvctl::DivideBy<T>(meeting.size, out->data(), count);
}

void Reduce(const Meeting& meeting, size_t count, DataType dtype, RedOp op, std::string* out) {
  switch (dtype) {
    case kInt8:
      return ReduceAs<int8_t>(meeting, count, op, out);
    case kUint8:
      return ReduceAs<uint8_t>(meeting, count, op, out);
    case kInt32:
      return ReduceAs<int32_t>(meeting, count, op, out);
    case kUint32:
      return ReduceAs<uint32_t>(meeting, count, op, out);
    case kInt64:
      return ReduceAs<int64_t>(meeting, count, op, out);
    case kUint64:
      return ReduceAs<uint64_t>(meeting, count, op, out);
    case kFloat16:
      return ReduceAs<kvctl::Float16>(meeting, count, op, out);
    case kBfloat16:
      return ReduceAs<kvctl::BFloat16>(meeting, count, op, out);
    case kFloat32:
      return ReduceAs<float>(meeting, count, op, out);
    case kFloat64:
      return ReduceAs<double>(meeting, count, op, out);
  }
}

/*! \brief Runs a send or a receive now, or when its group ends. */
Result Queue(std::vector<std::function<Result()>>* group, std::function<Result()> act) {
  if (group_depth == 0) return act();
  group->push_back(std::move(act));
  return kSuccess;
}

}  // namespace

#define FAKE_NCCL extern "C" __attribute__((visibility("default")))

FAKE_NCCL Result ncclGetVersion(int* version) {
  *version = 21005;
  return kSuccess;
}

FAKE_NCCL Result ncclGetUniqueId(UniqueId* id) {
  std::memset(id->bytes, 0, sizeof(id->bytes));  // zeros within, as in the real one
  {
    const std::lock_guard<std::mutex> lock(mutex);
    id->bytes[64] = static_cast<char>(++num_ids);
  }
  Note("ncclGetUniqueId");
  return Failure("ncclGetUniqueId", 0);
}

FAKE_NCCL Result ncclCommInitRank(Comm* comm, int size, UniqueId id, int rank) {
  Note("ncclCommInitRank id=", int{id.bytes[64]}, " rank=", rank, " size=", size);
  if (const Result failure = Failure("ncclCommInitRank", rank)) return failure;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& meeting = meetings[std::string(id.bytes, sizeof(id.bytes))];
  if (meeting == nullptr) meeting = std::make_shared<Meeting>();
  meeting->size = size;
  *comm = new FakeComm{meeting, rank};
  return kSuccess;
}

FAKE_NCCL Result ncclCommAbort(Comm comm) {
  FakeComm* fake = static_cast<FakeComm*>(comm);
  Note("ncclCommAbort rank=", fake->rank);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    fake->meeting->aborted = true;
  }
  changed.notify_all();
  return kSuccess;  // not freed: a thread may still wait with it
}

FAKE_NCCL Result ncclCommGetAsyncError(Comm comm, Result* error) {
  *error = Failure("async", static_cast<FakeComm*>(comm)->rank);
  return kSuccess;
}

FAKE_NCCL const char* ncclGetErrorString(Result result) {
  return result == kSystemError ? "unhandled system error" : "remote process exited";
}

FAKE_NCCL const char* ncclGetLastError(Comm comm) {
  return comm == nullptr ? "" : "no route to a fake host";
}

FAKE_NCCL Result ncclAllReduce(const void* send, void* recv, size_t count, DataType dtype, RedOp op,
                               Comm comm, Stream stream) {
  FakeComm* fake = static_cast<FakeComm*>(comm);
  Note("ncclAllReduce rank=", fake->rank, " count=", count, " dtype=", int{dtype}, " op=", int{op},
       " in_place=", send == recv, " stream=", reinterpret_cast<intptr_t>(stream));
  if (const Result failure = Failure("ncclAllReduce", fake->rank)) return failure;
  std::string reduced(count * Size(dtype), '\0');
  const Result result = Together(
      fake, send, [&](const Meeting& meeting) { Reduce(meeting, count, dtype, op, &reduced); });
  if (result == kSuccess) std::memcpy(recv, reduced.data(), reduced.size());
  return result;
}

FAKE_NCCL Result ncclAllGather(const void* send, void* recv, size_t count, DataType dtype,
                               Comm comm, Stream stream) {
  FakeComm* fake = static_cast<FakeComm*>(comm);
  Note("ncclAllGather rank=", fake->rank, " count=", count, " dtype=", int{dtype},
       " stream=", reinterpret_cast<intptr_t>(stream));
  if (const Result failure = Failure("ncclAllGather", fake->rank)) return failure;
  const size_t bytes = count * Size(dtype);
  return Together(fake, send, [&](const Meeting& meeting) {
    for (int worker = 0; worker < meeting.size; ++worker) {
      std::memcpy(static_cast<char*>(recv) + worker * bytes, meeting.sends[worker], bytes);
    }
  });
}

FAKE_NCCL Result ncclBroadcast(const void* send, void* recv, size_t count, DataType dtype, int root,
                               Comm comm, Stream stream) {
  FakeComm* fake = static_cast<FakeComm*>(comm);
  Note("ncclBroadcast rank=", fake->rank, " count=", count, " dtype=", int{dtype}, " root=", root,
       " null=", send == nullptr, " stream=", reinterpret_cast<intptr_t>(stream));
  if (const Result failure = Failure("ncclBroadcast", fake->rank)) return failure;
  return Together(fake, send, [&](const Meeting& meeting) {
    std::memmove(recv, meeting.sends[root], count * Size(dtype));
  });
}

FAKE_NCCL Result ncclSend(const void* data, size_t count, DataType dtype, int peer, Comm comm,
                          Stream stream) {
  FakeComm* fake = static_cast<FakeComm*>(comm);
  Note("ncclSend rank=", fake->rank, " count=", count, " dtype=", int{dtype}, " peer=", peer,
       " group=", group_depth, " stream=", reinterpret_cast<intptr_t>(stream));
  if (const Result failure = Failure("ncclSend", fake->rank)) return failure;
  const size_t bytes = count * Size(dtype);
  return Queue(&group_sends, [=] {
    const std::lock_guard<std::mutex> lock(mutex);
    fake->meeting->mail[{fake->rank, peer}].emplace_back(static_cast<const char*>(data), bytes);
    changed.notify_all();
    return kSuccess;
  });
}

FAKE_NCCL Result ncclRecv(void* data, size_t count, DataType dtype, int peer, Comm comm,
                          Stream stream) {
  FakeComm* fake = static_cast<FakeComm*>(comm);
  Note("ncclRecv rank=", fake->rank, " count=", count, " dtype=", int{dtype}, " peer=", peer,
       " group=", group_depth, " stream=", reinterpret_cast<intptr_t>(stream));
  if (const Result failure = Failure("ncclRecv", fake->rank)) return failure;
  const size_t bytes = count * Size(dtype);
  return Queue(&group_receives, [=] {
    std::unique_lock<std::mutex> lock(mutex);
    auto& mail = fake->meeting->mail[{peer, fake->rank}];
    changed.wait(lock, [&] { return !mail.empty() || fake->meeting->aborted; });
    if (mail.empty()) return kRemoteError;
    if (mail.front().size() != bytes) return kSystemError;
    std::memcpy(data, mail.front().data(), bytes);
    mail.pop_front();
    return kSuccess;
  });
}

FAKE_NCCL Result ncclGroupStart() {
  ++group_depth;
  return kSuccess;
}

FAKE_NCCL Result ncclGroupEnd() {
  if (--group_depth > 0) return kSuccess;
  Result result = kSuccess;
  for (auto* group : {&group_sends, &group_receives}) {
    for (const auto& act : *group) {
      if (const Result one = act()) result = one;
    }
    group->clear();
  }
  return result;
}

/*! \brief Takes the notes as lines of text; valid until the thread's next call. */
FAKE_NCCL const char* fake_nccl_take_notes() {
  thread_local std::string text;
  const std::lock_guard<std::mutex> lock(mutex);
  text.clear();
  for (const std::string& note : notes) text += note + "\n";
  notes.clear();
  return text.c_str();
}

/*! \brief Makes the next call of a name fail on one rank; "async" is an error of the device's. */
FAKE_NCCL void fake_nccl_fail(const char* call, int rank, int result) {
  const std::lock_guard<std::mutex> lock(mutex);
  failures[call] = {rank, result};
}
