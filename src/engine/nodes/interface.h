// The network card by which the ranks of an instance on several hosts reach each other.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/options.h"

namespace sluice::engine {

struct NetworkInterface {
  std::string name;
  bool up = false;
  std::vector<std::string> addresses;  // as numbers; those that are of one link alone (fe80::) are none
  bool carrier = true;                 // false: it is up, and no cable or network is at its end
  bool loopback = false;               // it leads to this host alone
};
// Of this host, in the system's order.
std::vector<NetworkInterface> network_interfaces();
using InterfaceSource = std::function<std::vector<NetworkInterface>()>;
// "lo (127.0.0.1, ::1), eth1 (10.0.1.2), eth2 (down), eth3 (no carrier)".
std::string in_words(const std::vector<NetworkInterface>& interfaces);

// --gloo-socket-ifname, or where it is not given the variable GLOO_SOCKET_IFNAME; nothing: the system decides.
std::optional<std::string> chosen_interface(const EngineOptions& options);

// The first address of the interface of that name, in the family of `like`, by which nodes join, or of any where that
// is empty. An error says what is wrong with the interface, and which ones there are: kUnavailable where that may mend
// itself (a card that is missing, down or unplugged, or has no address), kBadOption where it never does (several names,
// the loopback where nodes join by another address).
Result<std::string> address_of_interface(const std::vector<NetworkInterface>& interfaces, std::string_view name,
                                         std::string_view like);
// kBadOption where `host`, of --dist-init-addr, is a name that is taken for the loopback, as by /etc/hosts of some
// systems: `reached`, by which nodes join, is then no address of other hosts.
Result<void> check_name(const std::string& host, std::string_view reached);
// kUnavailable where `reached`, by which nodes join, is of an interface that is down or unplugged: an address of such a
// one can be listened at all the same.
Result<void> check_reached(const std::vector<NetworkInterface>& interfaces, std::string_view reached);

// Of this host, for ranks of others: of the interface that is chosen, in the family of `reached`; else `reached`, by
// which nodes join. Errors as above.
Result<std::string> rank_address(const EngineOptions& options, const std::string& reached,
                                 const InterfaceSource& interfaces = network_interfaces);
// The same at a start, where whatever is wrong is kBadOption: nobody waits for a card there.
Result<std::string> rank_address_at_start(const EngineOptions& options, const std::string& reached,
                                          const InterfaceSource& interfaces = network_interfaces);
// kBadOption where an interface is chosen that cannot be used, as far as that is known before nodes meet: an address
// behind a name in --dist-init-addr is not.
Result<void> check_interface(const EngineOptions& options, const InterfaceSource& interfaces = network_interfaces);

}  // namespace sluice::engine
