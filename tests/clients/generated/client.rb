# What a program does with the Ruby client of openapi-generator.
require "openapi_client"

include OpenapiClient

def check(actual, expected)
  raise "#{actual.inspect} is not #{expected.inspect}" unless actual == expected
end

url, user, token = ARGV
api = TasksApi.new(ApiClient.new(Configuration.new do |settings|
  settings.scheme, settings.host = url.split("://")
  settings.access_token = token
end))

task = api.create_task(user, TaskCreate.new(title: "Buy oat milk", description: "The barista one"))
check(task.created_at.class, Time)
check(task.created_at, task.updated_at)
check(api.get_task(user, task.id), task)
check(api.list_tasks(user, completed: false), [task])

updated = api.update_task(user, task.id, TaskUpdate.new(title: "Buy milk"))
check([updated.title, updated.description, updated.completed], ["Buy milk", "The barista one", false])
check([updated.created_at, updated.updated_at > task.updated_at], [task.created_at, true])
check(api.update_task(user, task.id, TaskUpdate.new(description: nil)).description, nil)
check(api.complete_task(user, task.id).completed, true)
check(api.complete_task(user, task.id, completion: Completion.new(completed: true)).completed, true)
check(api.complete_task(user, task.id, completion: Completion.new).completed, false)

api.delete_task(user, task.id)
begin
  api.get_task(user, task.id)
  raise "It is still there."
rescue ApiError => error
  problem = Problem.build_from_hash(JSON.parse(error.response_body, symbolize_names: true))
  check([problem.type, problem.status], [ProblemType::URN_PROBLEM_TYPE_TASK_NOT_FOUND, error.code])
end
