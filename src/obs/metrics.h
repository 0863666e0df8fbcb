// Metrics that cost one atomic addition each. A component declares its families as one list, resolves handles once per
// label set, and keeps the handles; whoever renders (obs/exposition.h) only reads.
//
//   const std::vector<Family> kFamilies = {
//       {.name = "smg_worker_requests_total", .help = "...", .kind = Kind::kCounter, .labels = {"worker"}}};
//   metrics.declare(kFamilies);
//   Counter sent = metrics.counter("smg_worker_requests_total", {url});  // once
//   sent.add();                                                          // per request
//   metrics.remove_series("worker", url);                                // the worker has left
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::obs {

enum class Kind { kCounter, kGauge, kHistogram };

struct Family {
  std::string_view name;  // names and help are literals: they are not copied
  std::string_view help;
  Kind kind = Kind::kCounter;
  // Values come from sets that the server controls, never from what clients send.
  std::vector<std::string_view> labels = {};
  // Upper bounds, ascending, without +Inf; histograms only.
  std::vector<double> buckets = {};
};

// Handles are cheap to copy and share their series. One that was default-constructed, or whose series was removed,
// counts on without being shown, so that late events of a worker that has left need no check. Any thread.
class Counter {
 public:
  Counter() : cell_(std::make_shared<std::atomic<double>>(0.0)) {}
  void add(double n = 1) { cell_->fetch_add(n, std::memory_order_relaxed); }
  double value() const { return cell_->load(std::memory_order_relaxed); }

 private:
  friend class Metrics;
  std::shared_ptr<std::atomic<double>> cell_;
};

class Gauge {
 public:
  Gauge() : cell_(std::make_shared<std::atomic<double>>(0.0)) {}
  void set(double value) { cell_->store(value, std::memory_order_relaxed); }
  void add(double n) { cell_->fetch_add(n, std::memory_order_relaxed); }
  double value() const { return cell_->load(std::memory_order_relaxed); }

 private:
  friend class Metrics;
  std::shared_ptr<std::atomic<double>> cell_;
};

class Histogram {
 public:
  Histogram() : Histogram(std::vector<double>()) {}
  explicit Histogram(std::vector<double> upper_bounds);
  void observe(double value) { observe(value, 1); }
  // `n` observations of the same value.
  void observe(double value, uint64_t n);
  uint64_t count() const;
  double sum() const { return cells_->sum.load(std::memory_order_relaxed); }

 private:
  friend class Metrics;
  struct Cells {
    std::vector<double> bounds;                       // constant
    std::unique_ptr<std::atomic<uint64_t>[]> counts;  // [bounds + 1], not cumulative
    std::atomic<double> sum{0};
  };
  std::shared_ptr<Cells> cells_;
};

using LabelValues = std::vector<std::string>;

// All families of a process. Any thread; the lock is taken by declaring, resolving, removing and rendering only.
class Metrics {
 public:
  Metrics();
  ~Metrics();

  // A name that is declared already is a broken invariant.
  void declare(const std::vector<Family>& families);

  // The series with these label values, in the order of the family's labels; made at the first call. The family must be
  // declared, of that kind, with that many labels.
  Counter counter(std::string_view family, LabelValues values = {});
  Gauge gauge(std::string_view family, LabelValues values = {});
  Histogram histogram(std::string_view family, LabelValues values = {});

  // Every series, of all families, that has the label with this value.
  void remove_series(std::string_view label, std::string_view value);

  // Every series of the family: for a before_render() function that shows a set which changes, and shows it anew.
  void clear(std::string_view family);

  // `refresh` runs before each rendering, on the thread that renders: for gauges that are set from a count kept
  // elsewhere. Nothing else renders before this rendering has seen what it set. Dropping the returned object, before
  // the Metrics, ends it; nothing runs after that.
  [[nodiscard]] std::shared_ptr<void> before_render(std::function<void()> refresh);

  // Text exposition format 0.0.4. Families without a series are left out, series are sorted.
  std::string render() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::obs
