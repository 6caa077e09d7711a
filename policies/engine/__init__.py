"""The one market engine: what orders and positions in perpetuals earn on bars. The rules, once.

Training labels, backtests, the optimiser, the paper bot and shadow fills all trade by them, so a policy is judged by
the rules it was taught. `account.Account` takes one bar at a time and is the definition; `columns.simulate_accounts`
is the same over many accounts at once, `stepping.SteppedAccounts` moves many on by what actors ask for, one bar each.
`policies.fills` is their special case of one entry with brackets. Where bars leave the order of events open, the worse
order is assumed.

time         an order belongs to a bar and knows nothing of it: it was decided at the close of the bar before. It lives
             for that bar only.
market order at the bar's open, moved against the order by the slippage; taker fee
limit order  at the limit and never better, only if the bar trades beyond it; maker fee. Post-only: refused if it is
             not on the passive side of the close before
slippage     a fraction; where the book at the open is known, a market order at the open walks it instead: the average
             price of the quantity over the book's mid. Beyond the last known level the rest pays that level's price and
             `beyond_depth_fraction` more. Stops, liquidations and horizon exits in such a bar pay the dearer of the two
stop         at a distance from the average entry, before the target when one bar reaches both; a bar that opens beyond
             it fills at that open; slippage, taker fee
target       at a distance from the average entry, only if the bar trades beyond it, at the target and never better,
             maker fee; not in a bar in which a limit order opened or added, whose extreme may have come before
liquidation  instead of the stop where it lies nearer: the price at which the position's margin, less its entry fees and
             funding, is down to the maintenance margin; closed on the book like a stop
horizon      at the close of the position's last bar, slippage, taker fee
gap          a bar that opens beyond stop or liquidation ends the position at that open, before the bar's own order,
             which is dropped: it was meant for a position that is no more
in the bar   a limit order that adds or opens fills before the stop; one that reduces is not filled in a bar that
             reaches stop or liquidation, which come first
funding      every rate settled within a bar of the position, entry and exit bar included, on the notional at that open.
             What an order opens, adds or closes in a bar pays the bar's rate where it is owed and does not receive it:
             rates settle moments after a bar opens, an order of the close before may fill on either side of that. Stop,
             liquidation, target and horizon leave the rate of their bar as it is
margin       isolated: an order that opens or adds sets notional / leverage of free cash aside, from which its entry fee
             and the position's funding are paid. A loss, fees and funding included, ends at the margin (the exit price
             is bounded accordingly). Free cash = cash - what is left of the margin set aside; unrealised gains are not
             free. An order that needs more is refused whole; of a reversal the closing half is filled
adding       at the average entry by quantity; stop, target and horizon become those of the last order that added
reducing     realises its share at the average entry; margin, entry fees and funding are shared by quantity
reversal     closes, then opens the rest at the same price
equity       cash + unrealised gain at the bar's close; cash moves by fees and funding at once, by gains on closing

Fees and funding are fractions of a position's notional at entry unless a name says otherwise, and reducing leaves them
as they are. sign is +1 for long, -1 for short. Not modelled: partial fills, several symbols on one margin (cross),
liquidation fees, queues of limit orders.
"""
