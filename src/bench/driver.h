// Sends the requests of a data set when they are due and measures the answers.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "bench/api.h"
#include "bench/dataset.h"
#include "bench/outcome.h"
#include "net/http.h"

namespace sluice::bench {

struct DriverOptions {
  net::Url url;
  net::Headers headers;  // of every request
  RequestForm form;
  int64_t max_concurrency = 0;  // items under way; 0 = no bound
  // The next request goes out when one before it has ended: it is due at that moment and not by the clock.
  bool closed_loop = false;
  Duration silence_timeout = std::chrono::minutes(30);
  bool keep_alive = true;
  bool keep_text = false;
  int threads = 1;
};

struct Progress {
  size_t total = 0;  // requests; a conversation has one per turn
  size_t done = 0;   // of which failed ones
  size_t failed = 0;
  Duration elapsed{};
};

struct DriverResult {
  std::vector<Outcome> outcomes;  // in the order of the items, and of their turns
  Duration duration{};            // until the last one ended
  bool interrupted = false;
  size_t cut_off = 0;  // requests under way when the run was ended early; they are in no figure
};

// Blocks until every request has ended. `arrivals` has a time for each item. `on_tick` is called now and then on the
// calling thread; false ends the run early: the result then holds what had ended by itself. Any thread but a loop's.
DriverResult drive(const DriverOptions& options, const std::vector<Item>& items, const std::vector<Duration>& arrivals,
                   const std::function<bool(const Progress&)>& on_tick = {});

}  // namespace sluice::bench
