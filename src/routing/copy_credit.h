// When one more worker should come to hold a prefix. Requests of a prefix that is asked for often wait at the workers
// that hold it while another one idles, each a little less than the prefix would take to compute there, and so each
// rightly stays: for ever. Together they pay for the copy many times over. So what the requests of a prefix wait, and
// would not where one more worker held it, is credit for a copy, and once it has paid the price the next one makes it:
// rent until the rent has paid for the house (Karlin, Manasse, Rudolph, Sleator, "Competitive snoopy caching", 1988).
//
// Credit fades, so that only waiting that lasts counts, and a moment's queue at a holder does not. By Little's law it
// stands for requests: a copy is made where more than kWorth / kMemory of the prefix are always standing in line in
// vain. A burst that is over sooner than a copy could be made earns next to nothing, for requests count by the time
// between them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/clock.h"
#include "routing/prefix_index.h"

namespace sluice::routing {

class CopyCredit {
 public:
  static constexpr double kMemory = 2;  // time constant of the fading, in prices
  static constexpr double kWorth = 4;   // credit that makes a copy, in prices
  static constexpr double kMost = 4;    // a request counts for so many times the time since the last one of its prefix

  // A request of that prefix, at `now`, will wait `saves` seconds that it would not where one more worker held it as
  // well, which for the first request there would cost `price` > 0 seconds. True when this one should pay them; the
  // credit is spent then. Any thread, without a wait: of requests of one prefix at the same moment one counts.
  bool earn(const PrefixPlace& prefix, double saves, double price, TimePoint now);

 private:
  // Prefixes share an account by chance; one that earns more than is left there takes it over, and begins with so much
  // of a price at most.
  static constexpr size_t kAccounts = 256;
  static constexpr double kFirst = 0.25;
  struct alignas(64) Account {
    std::atomic<bool> taken{false};
    // Whoever has taken it:
    PrefixPlace prefix{};
    double credit = 0;  // seconds
    TimePoint at{};
  };
  std::array<Account, kAccounts> accounts_;
};

}  // namespace sluice::routing
