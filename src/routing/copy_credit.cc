#include "routing/copy_credit.h"

#include <algorithm>
#include <cmath>

namespace sluice::routing {

bool CopyCredit::earn(const PrefixPlace& prefix, double saves, double price, TimePoint now) {
  Account& account = accounts_[prefix.node % kAccounts];
  if (account.taken.exchange(true, std::memory_order_acquire)) return false;
  const double since = std::max(0.0, seconds(now - account.at));
  const double left = account.credit * std::exp(-since / (kMemory * price));
  bool pays = false;
  if (account.prefix.is(prefix)) {
    account.credit = left + std::min(saves, kMost * since);
    account.at = std::max(account.at, now);  // threads may come in another order than they looked at the clock
    pays = account.credit >= kWorth * price;
    if (pays) account.credit = 0;
  } else if (left < saves) {
    account.prefix = prefix;
    account.credit = std::min(saves, kFirst * price);
    account.at = now;
  }
  account.taken.store(false, std::memory_order_release);
  return pays;
}

}  // namespace sluice::routing
