// What the ranks of an instance told each other in their last exchanges, for whoever reads the log after a failure.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/step_sync.h"
#include "parallel/topology.h"

namespace sluice::parallel {

// Used by the rank's thread.
class ExchangeLog {
 public:
  static constexpr int64_t kKept = 64;

  explicit ExchangeLog(const Layout& layout);

  // `rows` [tp_size] by rank, of the next exchange.
  void record(std::span<const StepRow> rows);
  // "exchanges 120 to 183; rank 0: 61 x idle, prefill of 56, 2 x decode of 4; rank 1: ...". Empty: there was none.
  std::string text() const;

 private:
  // Of a row.
  struct Entry {
    ForwardMode mode = ForwardMode::kIdle;
    bool more_to_come = false;
    int64_t tokens = 0;
    bool operator==(const Entry&) const = default;
  };
  std::string text_of(int64_t rank) const;

  const Layout layout_;
  std::vector<Entry> entries_;  // [kKept, tp_size], a ring
  int64_t recorded_ = 0;
  int64_t last_ = 0;  // the number of the last exchange
};

}  // namespace sluice::parallel
