-- Takes orders and publishes a receipt for each.

function handle_order(order)
  if type(order.items) ~= "table" or #order.items == 0 then
    return nil, errors.new{kind = errors.INVALID, message = "order without items", retryable = false}
  end

  local total = 0
  for _, item in ipairs(order.items) do
    total = total + item.price * item.quantity
  end

  local ok, err = queue.publish("app:receipts", {order = order.id, total = total})
  if not ok then
    return nil, err -- comes back after a delay
  end
  logger:info("receipt written", {order = order.id, total = total})
  return true
end
