// What `sluice serve` shows while its workers start: on a terminal one line per worker that is redrawn in place, with
// log lines scrolling above; elsewhere a line whenever a worker's state changes.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::cli {

// Any thread.
class StartupDisplay {
 public:
  // `names[i]` is worker i. Writes to `descriptor`; redraws in place if `terminal`.
  StartupDisplay(std::vector<std::string> names, int descriptor, bool terminal);

  // `share` is 0 to 1.
  void progress(size_t worker, double share, std::string_view what);
  void ready(size_t worker);
  void down(size_t worker, std::string_view cause);
  // A line of somebody else's, above the workers'.
  void print(std::string_view line);
  // The workers' lines stay as they are; from now on only print() writes.
  void finish();

 private:
  struct State {
    std::string name;
    double share = 0;
    std::string what = "starting";
  };

  void show(size_t worker);
  std::string bar(const State& state) const;
  void draw(std::string_view above);
  void write(std::string_view bytes) const;

  const int descriptor_;
  const bool terminal_;

  std::mutex mutex_;  // guards what follows
  std::vector<State> workers_;
  bool drawn_ = false;
  bool finished_ = false;
};

}  // namespace sluice::cli
