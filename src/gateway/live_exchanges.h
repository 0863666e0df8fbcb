// The exchanges of one loop that are under way, for GET /debug/requests. To begin and to end costs four pointers.
#pragma once

#include <boost/intrusive/list.hpp>

#include "base/clock.h"
#include "obs/journal.h"

namespace sluice::gateway {

// Loop thread only.
class LiveExchanges {
  using Hook = boost::intrusive::list_base_hook<boost::intrusive::link_mode<boost::intrusive::auto_unlink>>;

 public:
  // A member of the exchange.
  class Entry : public Hook {
   public:
    Entry(LiveExchanges& of, const obs::RequestRecord& its_record, TimePoint its_begin)
        : record(its_record), begun(its_begin) {
      of.entries_.push_back(*this);
    }
    const obs::RequestRecord& record;
    const TimePoint begun;
  };

  // Oldest first, until `see` says false.
  template <class F>
  void each(F&& see) const {
    for (const Entry& entry : entries_) {
      if (!see(entry)) return;
    }
  }

 private:
  boost::intrusive::list<Entry, boost::intrusive::constant_time_size<false>> entries_;
};

}  // namespace sluice::gateway
