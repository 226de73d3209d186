/*!
 * \file benchmarks/cpp/report.h
 * \brief What the C++ benchmarks share: samples with their spread, and the facts about the machine.
 */
#ifndef KVCTL_BENCHMARKS_REPORT_H_
#define KVCTL_BENCHMARKS_REPORT_H_

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace kvctl_bench {

/*! \brief Measurements of one thing, in microseconds. */
class Samples {
 public:
  void Add(double microseconds) { values_.push_back(microseconds); }
  double Median() const { return Quantile(0.5); }
  double Least() const { return Quantile(0); }
  double Quantile(double q) const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    return sorted.empty() ? 0.0 : sorted[static_cast<size_t>(q * (sorted.size() - 1) + 0.5)];
  }
  std::string Json() const {
    char text[200];
    std::snprintf(text, sizeof(text),
                  "{\"median_us\": %.4g, \"least_us\": %.4g, \"p10_us\": %.4g, "
                  "\"p90_us\": %.4g, \"samples\": %zu}",
                  Median(), Least(), Quantile(0.1), Quantile(0.9), values_.size());
    return text;
  }

 private:
  std::vector<double> values_;
};

/*! \brief Runs f and returns how long it took, in microseconds. */
template <typename F>
double Microseconds(F&& f) {
  const auto begin = std::chrono::steady_clock::now();
  std::forward<F>(f)();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
      .count();
}

/*! \brief The machine as a JSON object. */
inline std::string MachineJson() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line, model = "unknown";
  while (std::getline(cpuinfo, line)) {
    if (line.rfind("model name", 0) == 0) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  return "{\"cpu\": \"" + model +
         "\", \"cores\": " + std::to_string(std::thread::hardware_concurrency()) + "}";
}

}  // namespace kvctl_bench

#endif  // KVCTL_BENCHMARKS_REPORT_H_
