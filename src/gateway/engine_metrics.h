// Many workers' expositions as one document.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::gateway {

// Families of the same name become one; every sample gets the label worker_addr; ':' in a metric's name becomes '_',
// which Prometheus keeps for rules. Label values and numbers stay as they are. Lines that are no samples are left out:
// one of them would cost the reader the whole document.
class EngineMetrics {
 public:
  void add(std::string_view worker_address, std::string_view exposition);
  std::string text() const;

 private:
  struct Family {
    std::string name;
    std::string help, type;  // as they came first; empty = not said
    std::vector<std::string> samples;
  };
  Family& family(const std::string& name);
  void add_comment(std::string_view line, std::string& current);
  void add_sample(std::string_view line, std::string_view label, const std::string& current);

  std::vector<Family> families_;  // in the order of appearance
  std::map<std::string, size_t, std::less<>> index_;
  std::set<std::string> seen_;  // names with labels
};

}  // namespace sluice::gateway
