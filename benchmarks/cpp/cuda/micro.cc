// The CUDA kernels alone, without TVM, torch or Python: are they right, and how far from the
// memory's speed?
//
//   micro OUTPUT.json [SECONDS] [tiny]
//
// No shape begins after so many seconds. "tiny" is for the emulation, whose times mean nothing.
// Exit status 1: a result is wrong, or a shape was left out.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "paged_batch.h"
#include "verified_batch.h"

namespace kvctl_bench {
namespace {

constexpr double kBound = 2e-3;  // of float16 outputs against float64

/*! \brief The predicted share of the copy bandwidth, made from the code before anything ran: as the
 * kernels first were, and once merging, work split and append were mended. In per cent; 0: none.
 *
 * Where the sequences share keys, of reading those once: 30 us for 98 MB on an H100. First, each
 * sequence read them; now 64 queries do, so that 32 sequences read them twice, the second time from
 * the L2 cache (6 us), and merge two results more (1 us) on top of the fixed 4 us. */
struct Prediction {
  int32_t kv, batch, queries, first, mended;
  int32_t shared = 0;
  bool float8 = false;  // pages of 8-bit floats
};
constexpr Prediction kPredictions[] = {
    {8192, 1, 1, 29, 71},
    {8192, 1, 8, 28, 71},
    {8192, 1, 16, 27, 71},
    {8192, 8, 1, 75, 88},
    {8192, 8, 8, 66, 88},
    {8192, 8, 16, 64, 88},
    {8192, 32, 1, 88, 92},
    {8192, 32, 8, 88, 92},
    {8192, 32, 16, 86, 92},
    {32768, 1, 1, 53, 87},
    {32768, 1, 8, 57, 87},
    {32768, 1, 16, 56, 87},
    {32768, 8, 1, 83, 91},
    {32768, 8, 8, 73, 91},
    {32768, 8, 16, 72, 91},
    {32768, 32, 1, 90, 93},
    {32768, 32, 8, 90, 93},
    {32768, 32, 16, 88, 93},
    {8192, 32, 1, 9, 74, 7680},
    // As float16's share, of half of the bytes: nothing of this was predicted.
    {8192, 8, 8, 0, 0, 0, true},
    {32768, 8, 1, 0, 0, 0, true},
    {32768, 8, 16, 0, 0, 0, true},
};

/*! \brief One shape of attention as a JSON object; `right` becomes false where it is not. */
std::string MeasureAttention(const Prediction& one, double bandwidth, int32_t repeats,
                             const std::vector<uint16_t>& block, bool* right) {
  const BatchShape shape{one.kv, one.batch, one.queries, one.shared, one.float8};
  PagedBatch batch(shape, block, L2Bytes());
  const double error = batch.Error(24);
  const bool good = error <= kBound;  // false for NaN
  *right = *right && good;
  const int32_t layers = batch.num_layers();
  const Samples append = GraphTimes(repeats, [&](cudaStream_t stream) { batch.Append(stream); });
  const Samples all = GraphTimes(repeats, [&](cudaStream_t stream) { batch.Attend(stream); });
  const double read = batch.LayerBytes() / bandwidth, layer = all.Median() / layers;
  std::ostringstream json;
  json << "{\"pages\": \"" << (one.float8 ? "float8_e4m3fn" : "float16") << "\", \"kv\": " << one.kv
       << ", \"batch\": " << one.batch << ", \"new\": " << one.queries
       << ", \"shared\": " << one.shared << ", \"layers\": " << layers
       << ", \"error\": " << (std::isnan(error) ? -1.0 : error)
       << ", \"right\": " << (good ? "true" : "false")
       << ", \"append_us\": " << append.Median() / layers << ", \"append_and_attend_us\": " << layer
       << ", \"least_us\": " << all.Least() / layers << ", \"read_us\": " << read
       << ", \"percent_of_copy\": " << 100 * read / layer << ", \"predicted_first\": " << one.first
       << ", \"predicted_mended\": " << one.mended;
  if (one.shared > 0) {  // beside it, where each sequence reads what it shares
    PagedBatch apart(shape, block, L2Bytes(), false);
    const bool same = apart.Error(24) <= kBound;
    *right = *right && same;
    const Samples times = GraphTimes(repeats, [&](cudaStream_t stream) { apart.Attend(stream); });
    json << ", \"apart_right\": " << (same ? "true" : "false")
         << ", \"apart_us\": " << times.Median() / layers;
  }
  json << "}";
  std::printf(
      "%s  kv %6d (%d shared)  batch %2d  new %2d: error %.1e%s, %8.1f us a layer, %5.1f %% of the "
      "copy bandwidth (predicted %d, then %d)\n",
      one.float8 ? "float8 " : "float16", one.kv, one.shared, one.batch, one.queries, error,
      good ? "" : " WRONG", layer, 100 * read / layer, one.first, one.mended);
  return json.str();
}

/*! \brief Verification of 16 chains of five drafts. */
std::string MeasureVerification(int32_t vocab, int32_t sequences, bool accepted, double bandwidth,
                                int32_t repeats, bool* right) {
  VerifiedBatch batch(vocab, sequences, accepted);
  const bool agrees = batch.AgreesWithCpu();
  const int32_t expected = accepted ? sequences * kDrafts : 0;
  // Rounded, a probability may be below the target's: not quite all are accepted for certain.
  const bool forced = std::abs(batch.Accepted() - expected) <= sequences / 8;
  *right = *right && agrees && forced;
  Samples samples;
  for (int32_t i = -2; i < repeats; ++i) {
    const double time = Microseconds([&] { batch.OnDevice(); });
    if (i >= 0) samples.Add(time);
  }
  const double read = batch.Bytes() / bandwidth;
  std::ostringstream json;
  json << "{\"vocab\": " << vocab << ", \"batch\": " << sequences
       << ", \"accepts\": " << (accepted ? "true" : "false")
       << ", \"bit_equal\": " << (agrees ? "true" : "false")
       << ", \"accepted\": " << batch.Accepted() << ", \"call\": " << samples.Json()
       << ", \"read_once_us\": " << read << ", \"predicted_reads\": " << batch.PredictedReads()
       << "}";
  std::printf(
      "verify V %6d  batch %2d  %s: %s, %8.1f us a call, %.2f times reading once (bytes: %.2f)\n",
      vocab, sequences, accepted ? "accepts" : "rejects",
      agrees && forced ? "as the CPU" : "NOT as the CPU", samples.Median(), samples.Median() / read,
      batch.PredictedReads());
  return json.str();
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: micro OUTPUT.json [SECONDS] [tiny]\n");
    return 2;
  }
  const double seconds = argc > 2 ? std::atof(argv[2]) : 240;
  const bool tiny = argc > 3 && std::strcmp(argv[3], "tiny") == 0;
  const auto begin = std::chrono::steady_clock::now();
  const auto late = [&] {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    return spent.count() > seconds;
  };
  const int32_t repeats = tiny ? 1 : 15;
  std::mt19937 rng(1);
  const size_t block_size = tiny ? 50021 : (8 << 20) + 3;
  const std::vector<uint16_t> block = RandomHalves(block_size, &rng);
  const std::vector<uint16_t> float8_block = RandomFloat8s(block_size, &rng);
  const double bandwidth = CopyBandwidth(tiny ? 1 << 16 : size_t{1} << 30);
  bool right = true;
  int32_t left_out = 0;
  std::ofstream file(argv[1]);
  file << "{\"device\": \"" << DeviceName() << "\", \"copy_bytes_per_us\": " << bandwidth
       << ",\n \"l2_bytes\": " << L2Bytes() << ", \"attention\": [";
  const char* comma = "\n  ";
  for (Prediction one : kPredictions) {
    if (tiny) {  // lengths that end inside a page, and fewer shapes
      if (one.batch == 32 && one.shared == 0) continue;
      one.kv = one.shared > 0 ? 563 : one.kv / 128 + 3;
      one.shared = std::min(one.shared, 512);
      one.batch = std::min(one.batch, 2);
    }
    if (late()) {
      ++left_out;
      continue;
    }
    const std::vector<uint16_t>& elements = one.float8 ? float8_block : block;
    file << comma << MeasureAttention(one, bandwidth, repeats, elements, &right) << std::flush;
    comma = ",\n  ";
  }
  file << "],\n \"verification\": [";
  comma = "\n  ";
  for (const int32_t vocab : {32000, 128256}) {
    for (const bool accepted : {true, false}) {
      if (late()) {
        ++left_out;
        continue;
      }
      file << comma
           << MeasureVerification(tiny ? vocab / 32 : vocab, tiny ? 2 : 16, accepted, bandwidth,
                                  repeats, &right);
      comma = ",\n  ";
    }
  }
  file << "],\n \"left_out\": " << left_out << ", \"right\": " << (right ? "true" : "false")
       << "}\n";
  file.close();
  if (!file) {
    std::fprintf(stderr, "%s cannot be written\n", argv[1]);
    return 1;
  }
  if (left_out > 0) std::fprintf(stderr, "%d shapes were left out for want of time\n", left_out);
  return right && left_out == 0 ? 0 : 1;
}

}  // namespace
}  // namespace kvctl_bench

int main(int argc, char** argv) { return kvctl_bench::Main(argc, argv); }
